import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, Qwen2Config
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vlm.config import ProjectorKind
from vlm.model.projector import ACTIVATIONS, first_weights, is_linear

TOWER, LANGUAGE = (
    CLIPVisionConfig(hidden_size=16, num_attention_heads=2),
    Qwen2Config(hidden_size=24, num_attention_heads=2),
)


def config_of(kind: ProjectorKind) -> LlavaConfig:
    return LlavaConfig(vision_config=TOWER, text_config=LANGUAGE, projector_hidden_act=ACTIVATIONS[kind])


@pytest.mark.parametrize("kind", ProjectorKind)
def test_the_seed_alone_decides(kind):
    one = first_weights(config_of(kind), 5)
    state = torch.get_rng_state()
    same, other = first_weights(config_of(kind), 5), first_weights(config_of(kind), 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["linear_1.weight"], other["linear_1.weight"])
    assert not torch.equal(one["linear_1.bias"], other["linear_1.bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_one_layer_to_the_bit_in_the_stock_module(dtype):
    config = config_of(ProjectorKind.linear)
    stock = LlavaMultiModalProjector(config).to(dtype)
    stock.load_state_dict(first_weights(config, 0))
    features = torch.randn(5, 16, dtype=dtype)
    assert torch.equal(stock(features), stock.linear_1(features))
    assert is_linear(config)
    assert not is_linear(config_of(ProjectorKind.mlp2x_gelu))
