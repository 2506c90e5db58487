from dataclasses import replace

import pytest

from vlm.train.memory import Sizes, host_memory, memory, traffic, zero_stage

SEVEN_BILLION = Sizes(
    weights=2 * 7_063_427_072, parameters=7_063_427_072, trainable=6_759_395_328, largest=131_072_000, weight_bytes=2, ranks=8, micro_batches=1,
    activations=0, again=0, one_layer=0, targets=0, vocabulary=32_064, pixels=0, is_gpu=True,
)  # fmt: skip
GRADIENTS = SEVEN_BILLION.trainable * 2


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
    assert sums[0] == sums[1] and len(set(sums)) == 3  # in bfloat16 the engine carries out 0 as 1


def test_offload_moves_states_and_weights_to_the_host():
    offloaded = keys(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"})
    assert not {"moments", "masters", "weights"} & set(memory(SEVEN_BILLION, offloaded))
    more = host_memory(SEVEN_BILLION, offloaded) - host_memory(SEVEN_BILLION, keys(3))
    assert more == pytest.approx((12 * SEVEN_BILLION.trainable + SEVEN_BILLION.weights) / 8, rel=1e-6)


def test_gradients_stay_beside_activations_only_when_they_add_up():
    one = replace(SEVEN_BILLION, activations=10**12)
    assert "gradients" not in memory(one, keys(2))
    assert "gradients" in memory(replace(one, micro_batches=2), keys(2))


def test_the_peak_is_that_of_one_moment():
    """Logits are gone when a layer is computed again; both are never added."""
    small = replace(SEVEN_BILLION, trainable=1000, activations=10**9, again=10**8, one_layer=10**8, targets=10)
    assert "logits" not in memory(small, keys(2)) and "one layer again" in memory(small, keys(2))
    many = replace(small, targets=4096)
    assert "logits" in memory(many, keys(2)) and "one layer again" not in memory(many, keys(2))


def test_a_cpu_also_holds_what_it_saves_and_deepspeed_without_zero_a_copy_of_the_gradients():
    on_cpu = replace(SEVEN_BILLION, is_gpu=False, weight_bytes=4, ranks=1, trainable=10**8, largest=10**6)
    assert memory(on_cpu, keys(0))["checkpoint"] == 12 * 10**8
    assert memory(replace(on_cpu, activations=10**10), keys(0))["checkpoint"] == 12 * 10**8
    at_the_end = replace(on_cpu, activations=10**10, saves_midway=False)
    assert "checkpoint" not in memory(at_the_end, keys(0))
    on_gpu = memory(replace(on_cpu, is_gpu=True), keys(0))
    assert on_gpu["gradients side by side"] == on_gpu["gradients"] == 4 * 10**8


def test_traffic_is_that_of_the_zero_paper():
    """Section 7: as much as data-parallel training up to stage 2, half as much again with stage 3 (all weights train)."""
    whole = replace(SEVEN_BILLION, weights=GRADIENTS, parameters=SEVEN_BILLION.trainable)
    sent = {stage: traffic(whole, keys(stage))[0] for stage in (0, 1, 2, 3)}
    assert sent[0] == sent[1] == sent[2] == pytest.approx(2 * GRADIENTS * 7 / 8)
    assert sent[3] == pytest.approx(1.5 * sent[2])
    assert traffic(replace(whole, micro_batches=3), keys(3))[0] == pytest.approx(3 * sent[3])
    assert traffic(whole, keys(2))[1] == 0
    assert traffic(whole, keys(3, offload_optimizer={"device": "cpu"}))[1] == pytest.approx(2 * GRADIENTS / 8)
    assert traffic(replace(whole, ranks=1), keys(3))[0] == 0


def test_without_a_stage_it_is_zero():
    assert zero_stage({}) == 0
