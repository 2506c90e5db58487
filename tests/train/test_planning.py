from vlm.data.index import Split
from vlm.train.planning import plan_of


def test_epochs_and_batch_of_the_settings_make_the_plan(settings, tiny_shards):
    shards = Split(tiny_shards / "pretrain")
    plan = plan_of(settings(steps=None, epochs=2, samples_per_step=5), 0, shards)
    assert len(plan.order) == 2 * len(shards)
    assert plan.steps == -(-2 * len(shards) // 5)
