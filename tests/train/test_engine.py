import copy
import shutil

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch import nn
from torch._dynamo.utils import counters
from transformers import Qwen2Config, Qwen2ForCausalLM

from vlm.config import Recompute
from vlm.train.engine import (
    begin_restore,
    end_restore,
    gather,
    gradient_norm,
    join_ranks,
    lighten,
    link_states,
    restore,
    start_engine,
)
from vlm.train.strategy import Trainee


@pytest.fixture
def engine_of():
    """Return a function that starts an engine on a small model with two parameter groups, under a ZeRO stage."""

    def start(zero: int | str):
        join_ranks()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        trainees = [Trainee(name, "language_model", weight) for name, weight in model.named_parameters()]
        groups = [{"params": [t.weight for t in trainees if t.decays is decays], "lr": 0.1} for decays in (True, False)]
        offload = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
        extra = {"zero_optimization": {"stage": 3, **offload} if zero == "3 + offload" else {"stage": zero}}
        engine = start_engine(model, groups, betas=(0.9, 0.99), max_grad_norm=0.5, bfloat16=False, extra=extra)
        return engine, trainees

    return start


def step(engine, scale: float = 1.0) -> float:
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(engine(torch.arange(6.0).view(2, 3)).square().sum() * scale)
    norm = engine.get_global_grad_norm() or gradient_norm(engine)
    engine.step()
    return float(norm)


def states(engine, trainees) -> list[torch.Tensor]:
    link_states(engine)
    return [tensor for trainee in trainees for tensor in gather(engine, trainee).values()]


@pytest.mark.parametrize("zero", [0, 1, 2, 3, "3 + offload"])
def test_what_is_gathered_and_restored_goes_on_bit_for_bit(engine_of, zero):
    engine, trainees = engine_of(zero)
    step(engine)
    step(engine)
    link_states(engine)
    saved = [gather(engine, trainee) for trainee in trainees]
    saved = [{name: tensor.clone() for name, tensor in full.items()} for full in saved]
    step(engine)

    other, others = engine_of(zero)
    begin_restore(other, 2)
    with torch.no_grad():
        for trainee, full in zip(others, saved, strict=True):
            restore(other, trainee, full)
        end_restore(other)
    step(other)
    for one, same in zip(states(engine, trainees), states(other, others), strict=True):
        assert torch.equal(one, same)


def test_the_gradient_is_clipped(engine_of):
    engine, trainees = engine_of(0)
    norm = step(engine, scale=1e6)
    assert norm > 1e3
    first_moment = torch.cat([gather(engine, trainee)["exp_avg"].flatten() for trainee in trainees])
    assert first_moment.norm() == pytest.approx(0.1 * 0.5, rel=1e-3)  # (1 - beta) times the clipped gradient


def gradients(recompute: Recompute, attention: str) -> dict[str, torch.Tensor]:
    """Return the gradients of a small language model whose biases count."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=64, num_key_value_heads=2, attn_implementation=attention, **shape)
    model = Qwen2ForCausalLM(config).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    lighten(model.model, recompute, compiled=False)
    words = torch.arange(20).unsqueeze(0)
    model(input_ids=words, labels=words, use_cache=False).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("linear", [nn.functional.linear, zero3_linear_wrap], ids=["torch", "zero 3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recomputed_gradients_are_the_same_to_the_bit(monkeypatch, linear, attention):
    monkeypatch.setattr(nn.functional, "linear", linear)  # ZeRO-3 replaces it
    expected = gradients(Recompute.none, attention)
    for recompute in (Recompute.selective, Recompute.full):
        found = gradients(recompute, attention)
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU layers are compiled by a C++ compiler")
def test_compiled_layers_give_the_same_gradients_and_are_compiled_once_for_all_lengths():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, num_key_value_heads=2, **shape)).train()
    compiled = copy.deepcopy(model)
    lighten(compiled.model, Recompute.none, compiled=True)
    graphs = []
    for length in (20, 11, 33):
        words = torch.arange(length).unsqueeze(0)
        for one in (model, compiled):
            one.zero_grad()
            one(input_ids=words, labels=words, use_cache=False).loss.backward()
        for (name, expected), found in zip(model.named_parameters(), compiled.parameters(), strict=True):
            assert torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-6), name
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2] > 0
