from vlm.data.index import Split
from vlm.train.planning import plan_of
from vlm.train.workload import workload, workload_shape


def test_positions_of_a_plan_are_tokens_and_padding(settings, tiny_shards):
    shards = Split(tiny_shards / "finetune")
    plan = plan_of(settings(packing=False), 0, shards)
    found = workload(plan, 1, 1, shards.manifest["image_tokens"])
    assert found.padding == 0  # a row of one sample has none
    assert found.packs == found.samples == len(plan.order)
    assert found.tokens == plan.tokens[plan.order].sum()
    both = workload(plan, 2, 4, shards.manifest["image_tokens"])
    assert both.padding > 0
    assert both.tokens == found.tokens


def test_twice_the_rows_hold_twice_the_pictures_in_half_the_micro_batches(settings, tiny_shards):
    shards = Split(tiny_shards / "finetune")
    one = workload(plan_of(settings(packing=False), 0, shards), 1, 1, 4)
    two = workload_shape(one, 2)
    assert (two.rows, two.batch_images, two.micro_batches) == (2, 2 * one.batch_images, one.micro_batches // 2)
