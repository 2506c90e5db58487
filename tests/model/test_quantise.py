import builtins

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm.errors import Unusable
from vlm.model.quantise import bitsandbytes, quantise


@pytest.fixture
def llava(tiny_model):
    return LlavaForConditionalGeneration.from_pretrained(tiny_model)


def test_wide_linear_layers_of_the_language_model_and_nothing_else_become_nf4(llava):
    assert quantise(llava, torch.device("cpu")) == 2
    for name, layer in llava.named_modules():
        if isinstance(layer, nn.Linear):
            is_small = name.startswith("model.language_model.") and name.endswith("down_proj")  # 64 wide; others are 32
            assert (layer.weight.dtype is torch.uint8) is is_small, name
            if is_small:
                assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
                assert layer.compute_dtype is torch.bfloat16


def test_a_layer_computes_what_its_own_weights_do_within_the_steps_of_nf4(llava):
    layer = llava.model.language_model.layers[0].mlp.down_proj
    asked = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    wanted = layer(asked)
    quantise(llava, torch.device("cpu"))
    difference = llava.model.language_model.layers[0].mlp.down_proj(asked) - wanted
    # For normal weights NF4 errs by about 9 % (root mean square), as this library does wherever it reads back rightly.
    assert 0.05 < difference.norm() / wanted.norm() < 0.12


def test_a_model_too_narrow_for_a_block_is_refused(llava):
    for layer in llava.model.language_model.layers:
        layer.mlp.down_proj = nn.Linear(48, 32)
    with pytest.raises(Unusable, match="no layer's width is a multiple of 64"):
        quantise(llava, torch.device("cpu"))


def test_evaluation_between_two_steps_leaves_every_byte_of_the_base(llava):
    quantise(llava, torch.device("cpu"))
    before = {name: weight.clone() for name, weight in llava.named_parameters()}
    with torch.no_grad():
        llava.eval()(input_ids=torch.arange(9)[None])
    for name, weight in llava.named_parameters():
        assert torch.equal(weight, before[name]) and weight.dtype is before[name].dtype, name


def test_without_the_library_one_line_says_what_to_do(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "bitsandbytes":
            raise ModuleNotFoundError("No module named 'bitsandbytes'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(Unusable, match="needs bitsandbytes .*pip install bitsandbytes==") as refused:
        bitsandbytes()
    assert "\n" not in str(refused.value)
