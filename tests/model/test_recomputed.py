import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from vlm.model.recomputed import keep_inputs_alone

WORDS = torch.arange(24).view(2, 12)


def model_of(kind: type, config: type, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = kind(config(vocab_size=64, num_key_value_heads=2, head_dim=8, initializer_range=0.2, **shape)).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the loss and the gradients of one pass."""
    loss = model(input_ids=WORDS, labels=WORDS, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: w.grad for n, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("kind", "config"), [(Qwen2ForCausalLM, Qwen2Config), (LlamaForCausalLM, LlamaConfig)])
def test_losses_and_gradients_are_those_of_the_modules_to_the_bit(kind, config, frozen, dtype):
    found = []
    for changed in (False, True):
        model = model_of(kind, config, dtype)
        for name, weight in model.named_parameters():
            weight.requires_grad_(not frozen or "embed" in name or "layers.1.mlp.up" in name)
        if changed:
            keep_inputs_alone(model.model)
            layer = model.model.layers[1]
            assert all("forward" in vars(module) for module in (layer.mlp, layer.input_layernorm))
        found.append(trained(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_norm_and_a_gate_of_another_formula_stay_as_they_are():
    """Gemma's norm multiplies by 1 + weight, its gate is a GELU."""
    model = model_of(GemmaForCausalLM, GemmaConfig)
    keep_inputs_alone(model.model)
    assert all("forward" not in vars(module) for module in model.model.layers.modules())


def test_without_gradients_nothing_is_kept():
    model = model_of(Qwen2ForCausalLM, Qwen2Config)
    expected = model(input_ids=WORDS).logits
    keep_inputs_alone(model.model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=WORDS).logits, expected)


def test_gates_stay_where_norms_alone_are_meant():
    model = model_of(Qwen2ForCausalLM, Qwen2Config)
    keep_inputs_alone(model.model, gates=False)
    layer = model.model.layers[0]
    assert "forward" in vars(layer.input_layernorm)
    assert "forward" not in vars(layer.mlp)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_on_a_gpu_is_as_exact_as_the_module(dtype):
    models = [model_of(Qwen2ForCausalLM, Qwen2Config, dtype).cuda().model for _ in range(2)]
    keep_inputs_alone(models[1], gates=False)
    draw = torch.Generator("cuda").manual_seed(0)
    drawn, weights = (torch.randn(2, 12, 32, device="cuda", generator=draw) for _ in range(2))
    found = []
    for model in models:
        norm, states = model.layers[0].input_layernorm, drawn.to(dtype, copy=True).requires_grad_()
        (norm(states).float() * weights).sum().backward()
        found.append([norm(states), states.grad, norm.weight.grad])
    for theirs, ours in zip(*found, strict=True):
        assert (theirs.float() - ours.float()).norm() / theirs.float().norm() < 2 * torch.finfo(dtype).eps
