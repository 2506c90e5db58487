"""Norms and gated activations that keep their inputs alone, and compute the rest again in the backward pass.

transformers' modules keep, of every token, a norm's states up to three times and three results of the gate; in a layer
these are half of what is kept. Computed again is what works number by number, which is little beside the products of
matrices. Values and gradients are those of the modules to the bit; on a GPU those of norms are as exact, with other bits.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import rms_norm, silu

PROBE = torch.linspace(-4, 4, 9, device="cpu")


def keep_inputs_alone(language_model: nn.Module, *, gates: bool = True) -> None:
    """Have the norms (and gates) of a language model's layers compute their results again; others stay as they are.

    A norm is known by what its class computes, a gated activation too: down(silu(gate(x)) * up(x)).
    """
    for layer in language_model.layers:
        for module in layer.modules():
            if _is_rms_norm(type(module)):
                module.forward = partial(_normed, module)
            elif gates and _is_gated(type(module)) and torch.equal(getattr(module, "act_fn", silu)(PROBE), silu(PROBE)):
                module.forward = partial(_gated, module)


class _Again(torch.autograd.Function):
    """A function of tensors that keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:  # noqa: ANN401 - autograd's
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - autograd's
        needed = ctx.needs_input_grad[1:]
        inputs = [one.detach().requires_grad_(need) for one, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            result = ctx.function(*inputs)
        wanted = [one for one in inputs if one.requires_grad]
        found = iter(torch.autograd.grad(result, wanted, gradient))
        return None, *(next(found) if need else None for need in needed)


def _rms_norm(epsilon: float, weight: Tensor, states: Tensor, again: Tensor | None = None) -> Tensor:
    exact = states.to(torch.float32)
    size = (exact if again is None else again).pow(2).mean(-1, keepdim=True)
    return weight * (exact * torch.rsqrt(size + epsilon)).to(states.dtype)


def _normed(norm: nn.Module, states: Tensor) -> Tensor:
    if states.is_cuda:  # torch has a kernel there, which rounds once where the module rounds twice
        return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
    # Given twice, float32 states get their two gradients one by one, in the order in which autograd adds them up.
    given = (states, states) if states.dtype == torch.float32 else (states,)
    return _Again.apply(partial(_rms_norm, norm.variance_epsilon), norm.weight, *given)


def _product(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


def _gated(module: nn.Module, states: Tensor) -> Tensor:
    """Return the module's result; what `down_proj` would keep of the product is computed again as well."""
    gate, up = module.gate_proj(states), module.up_proj(states)
    product = _Again.apply(_product, gate, up)
    if not torch.is_grad_enabled():
        return module.down_proj(product)
    inputs, place = (gate.detach(), up.detach()), product.untyped_storage()._cdata

    def pack(kept: Tensor) -> Tensor | torch.Size:
        return kept.shape if kept.untyped_storage()._cdata == place and kept.numel() == gate.numel() else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return _product(*inputs).view(kept) if isinstance(kept, torch.Size) else kept

    with saved_tensors_hooks(pack, unpack):
        return module.down_proj(product)


@lru_cache
def _is_rms_norm(kind: type) -> bool:
    """Say whether a class computes `_rms_norm`, by trying it."""
    if "RMSNorm" not in kind.__name__:
        return False
    states, weight = _drawn(4, 8), _drawn(8)
    return _same(kind, SimpleNamespace(weight=weight, variance_epsilon=1e-5), states, _rms_norm(1e-5, weight, states))


@lru_cache
def _is_gated(kind: type) -> bool:
    """Say whether a class computes down(silu(gate(x)) * up(x)), by trying it."""
    if "MLP" not in kind.__name__:
        return False
    gate, up, down = (partial(torch.mul, _drawn(8)) for _ in range(3))
    stand_in = SimpleNamespace(gate_proj=gate, up_proj=up, down_proj=down, act_fn=silu)
    states = _drawn(4, 8)
    return _same(kind, stand_in, states, down(_product(gate(states), up(states))))


def _same(kind: type, stand_in: SimpleNamespace, states: Tensor, expected: Tensor) -> bool:
    """Say whether a class's forward gives what is expected, with `stand_in` for the module."""
    try:
        found = kind.forward(stand_in, states)
    except (AttributeError, TypeError):  # it is another class's forward, with attributes of its own
        return False
    return isinstance(found, Tensor) and torch.equal(found, expected)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), device="cpu")
