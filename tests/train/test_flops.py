import torch
from transformers import LlavaForConditionalGeneration

from vlm.config import Strategy
from vlm.train.flops import Cost, peak_flops


def cost_of(tiny_model, chosen: Strategy) -> Cost:
    llava = LlavaForConditionalGeneration.from_pretrained(tiny_model)
    for weight in llava.parameters():
        weight.requires_grad_(False)
    for name, weight in llava.named_parameters():
        weight.requires_grad_(chosen is Strategy.full or "multi_modal_projector" in name)
    return Cost.of(llava, 4)


def test_what_trains_costs_six_what_is_passed_back_through_four_and_a_frozen_tower_two(tiny_model):
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64  # queries and outputs, keys and values, feed-forward
    projector = 16 * 32 + 32 * 32
    frozen, full = cost_of(tiny_model, Strategy.projector), cost_of(tiny_model, Strategy.full)
    assert frozen.token == 4 * 2 * layer and full.token == 6 * 2 * layer
    assert full.target == frozen.target // 4 * 6 > 0
    tower = (frozen.patch - 6 * projector) // 2
    assert full.patch == 6 * (projector + tower)
    assert frozen.of_step(10, 3, 2) == 10 * frozen.token + 3 * frozen.target + 8 * frozen.patch


def test_a_given_peak_counts_and_an_unknown_one_is_none():
    assert peak_flops(torch.device("cpu"), 2.0) == 2e12
    assert peak_flops(torch.device("cpu"), None) is None
