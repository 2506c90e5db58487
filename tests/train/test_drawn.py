from dataclasses import replace

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vlm.config import Recompute, Strategy
from vlm.model.footprint import outline_of
from vlm.train import strategy
from vlm.train.drawn import Drawn, by_part
from vlm.train.flops import Cost
from vlm.train.workload import Workload

WORK = Workload(
    steps=1, tokens=100, targets=10, images=2, squares=1000, rows=2, length=50, batch_images=2, batch_targets=10
)


def drawn(settings, tiny_model, chosen: Strategy) -> Drawn:
    return Drawn.of(settings(chosen), outline_of(tiny_model), torch.float32, is_gpu=False)


@pytest.mark.parametrize("chosen", list(Strategy))
def test_what_is_drawn_trains_and_costs_as_the_model_that_is_loaded(settings, tiny_model, chosen, capsys):
    found = drawn(settings, tiny_model, chosen)
    cfg = settings(chosen)
    real = LlavaForConditionalGeneration.from_pretrained(tiny_model)
    capsys.readouterr()
    whole, trainees = strategy.choose(real, cfg.strategy, cfg.train, cfg.lora, lambda: None)
    assert [one.name for one in found.trainees] == [one.name for one in trainees]
    assert found.trainable == by_part((one.name, one.weight.numel()) for one in trainees)
    cost, counted = Cost.of(whole, found.patches), found.flops(WORK, Recompute.none)
    exact = cost.of_step(WORK.tokens, WORK.targets, WORK.images)
    assert sum(counted.values()) - counted["attention"] == exact
    assert all(weight.device.type == "meta" for weight in found.whole.parameters())


def test_recomputing_costs_a_forward_pass_of_the_layers(settings, tiny_model):
    found = drawn(settings, tiny_model, Strategy.full)
    none, full = (found.flops(WORK, how) for how in (Recompute.none, Recompute.full))
    layers = none["language model"] / 3 + (none["attention"] - 2 * _tower_attention()) / 3
    assert full["recomputed"] == pytest.approx(layers)
    assert none["recomputed"] == 0


def _tower_attention() -> float:
    """Of one picture of the tiny tower: 4 · width · positions² in the one layer up to its feature layer."""
    return 4.0 * 16 * 5**2


def test_four_bits_leave_a_quarter_of_the_layers(settings, tiny_model):
    lora, qlora = (drawn(settings, tiny_model, one) for one in (Strategy.lora, Strategy.qlora))
    plain, packed = (one.sizes(WORK, Recompute.none, 1, is_gpu=True) for one in (lora, qlora))
    assert 0 < packed.weights < plain.weights
    assert replace(packed, weights=0) == replace(plain, weights=0)
