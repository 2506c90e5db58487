from dataclasses import replace

import numpy as np
import pytest

from vlm.config import Strategy, TrainConfig
from vlm.data.index import Split
from vlm.data.plan import Plan
from vlm.train.planning import plan_of
from vlm.train.workload import largest_workload, loads_of, workload


def random_plan(seed: int, **changes) -> Plan:
    """A hundred samples and a step that is not full, some of the samples without a picture, some with several."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 4, 100)
    tokens = images * 10 + random.integers(5, 60, 100)
    targets = random.integers(1, 5, 100)
    plan = Plan(random.permutation(100), 12, tokens, images, targets, np.zeros(100, np.int64), 100, 5, True)
    return replace(plan, **changes)


def walked(plan: Plan, ranks: int, rows: int) -> dict:
    """The same figures, pack by pack, from the micro-batches that the loader would make."""
    shares = [plan.share(step, rank, ranks, rows) for step in range(plan.steps) for rank in range(ranks)]
    shapes = [
        (len(batch), max(1, *(int(plan.tokens[pack].sum()) for pack in batch), 1))
        for share in shares
        for batch in share
    ]
    batches = [[sample for pack in batch for sample in pack] for share in shares for batch in share]
    return {
        "packs": sum(1 for step in range(plan.steps) for pack in plan.packs(step, ranks) if pack),
        "micro_batches": max(map(len, shares)),
        "padding": 1 - int(plan.tokens[plan.order].sum()) / sum(r * length for r, length in shapes),
        "largest": max(r * length for r, length in shapes),
        "batch_images": max(int(plan.images[batch].sum()) for batch in batches),
        "batch_targets": max(int(plan.targets[batch].sum()) for batch in batches),
    }


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "unpacked"])
def test_what_is_counted_for_all_steps_at_once_is_what_the_loader_makes(ranks, rows, packing):
    for seed in range(5):
        plan = random_plan(seed, packing=packing)
        found = workload(plan, loads_of(plan, ranks), ranks, rows, image_tokens=10)
        counted = {name: getattr(found, name) for name in walked(plan, ranks, rows) if name != "largest"}
        expected = walked(plan, ranks, rows)
        assert counted | {"largest": found.rows * found.length} == pytest.approx(expected)


def test_positions_of_a_plan_are_tokens_and_padding(settings, tiny_shards):
    shards = Split(tiny_shards / "finetune")
    plan = plan_of(settings(packing=False), 0, shards)
    found = workload(plan, loads_of(plan, 1), 1, 1, shards.manifest["image_tokens"])
    assert found.padding == 0  # a row of one sample has none
    assert found.packs == found.samples == len(plan.order)
    assert found.tokens == plan.tokens[plan.order].sum()
    assert found.image_tokens == found.images * shards.manifest["image_tokens"]


def test_without_an_index_the_micro_batch_is_the_largest_that_the_settings_allow():
    cfg = TrainConfig(strategy=Strategy.full, pack_tokens=2048, pack_images=64)
    found = largest_workload(cfg, 4, max_tokens=1000, image_tokens=576)
    assert (found.rows, found.length, found.batch_images, found.batch_targets) == (4, 2048, 12, 4 * 2048 - 12 * 576)
    unpacked = largest_workload(replace(cfg, packing=False), 4, max_tokens=1000, image_tokens=576)
    assert (unpacked.length, unpacked.batch_images) == (1000, 4)
    assert found.steps == 0
