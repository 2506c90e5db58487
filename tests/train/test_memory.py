from dataclasses import replace

import pytest

from vlm.train.memory import Sizes, memory, zero_stage

SEVEN_BILLION = Sizes(
    weights=2 * 7_063_427_072, parameters=7_063_427_072, trainable=6_759_395_328, largest=131_072_000, weight_bytes=2, ranks=8, micro_batches=1,
    activations=0, one_layer=0, targets=0, vocabulary=32_064, pixels=0, is_gpu=True,
)  # fmt: skip


def keys(stage: int, **more) -> dict:
    return {"zero_optimization": {"stage": stage, "reduce_bucket_size": 5e7, "stage3_max_live_parameters": 0, **more}}


def test_full_training_keeps_sixteen_bytes_a_parameter_which_zero_spreads():
    """ZeRO paper, Rajbhandari et al. 2020, section 3: 2 + 2 + 12 bytes; stage 3 divides all by the ranks."""
    items = memory(SEVEN_BILLION, keys(3))
    share = SEVEN_BILLION.trainable / 8
    kept = sum(items[name] for name in ("masters", "moments", "gradients"))
    assert kept == pytest.approx(14 * share, rel=1e-6)
    assert items["weights"] == pytest.approx(2 * SEVEN_BILLION.parameters / 8, rel=1e-6)


def test_each_stage_needs_less_than_the_one_before():
    sums = [sum(memory(SEVEN_BILLION, keys(stage)).values()) for stage in (0, 1, 2, 3)]
    assert sums == sorted(sums, reverse=True)
    assert len(set(sums)) == 4


def test_offload_leaves_the_optimizer_out_of_the_device():
    items = memory(SEVEN_BILLION, keys(3, offload_optimizer={"device": "cpu"}))
    assert not {"moments", "masters"} & set(items)


def test_gradients_stay_beside_activations_only_when_they_add_up():
    one = replace(SEVEN_BILLION, activations=10**12)
    assert "gradients" not in memory(one, keys(2))
    assert "gradients" in memory(replace(one, micro_batches=2), keys(2))


def test_without_a_stage_it_is_zero():
    assert zero_stage({}) == 0
