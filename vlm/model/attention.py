"""Attention of packs: every sample of a row by itself, without a mask of L times L.

The samples' bounds travel through the language model under transformers' own names (`told_of`). On a GPU one call
serves all samples: flash-attn 2 where it is installed, else torch's varlen attention, on the same kernels. Elsewhere
(CPU, float32, old GPUs) every sample has its own causal call. None of them computes what lies between two samples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:  # optional; it is built against one torch and one CUDA
    flash_attn_varlen_func = None

PACKED = "packed"  # its name in transformers' table
FLASH_HEADS = 256  # values in a head that the flash kernels can take, in steps of 8


def attend_within_samples(language_model: PreTrainedModel) -> None:
    """Let a language model use the attention below in place of transformers' default; another choice stands.

    One that caps its scores stays with what transformers makes of it: no kernel below does so.
    """
    config = language_model.config
    if config._attn_implementation == "sdpa" and not getattr(config, "attn_logit_softcapping", None):
        language_model.set_attn_implementation(PACKED)


def told_of(position_ids: Tensor, config: PreTrainedConfig, device: torch.device) -> dict[str, Any]:
    """Return what a language model on a device is told of its samples; positions (B, L), best on the CPU, begin at 0 in each.

    position_ids    (B, L), on the device; for the attention below (1, B·L): a compiled layer else is made anew for one row
    attention_mask  None, so that eager attention isolates samples by where positions begin anew; for the attention
                    below, which reads none, one of a form that transformers takes as made
                    already: to make its own it asks the GPU whether there are packs, and waits for the answer
    cu_seq_lens_*   (S + 1,) int32; the begin of each of the S samples in the B·L tokens, then B·L
    max_length_*    tokens of the longest
    """
    begins = (position_ids.flatten() == 0).nonzero().flatten()
    bounds = torch.cat([begins, begins.new_tensor([position_ids.numel()])]).int()
    longest, bounds = int(position_ids.max()) + 1, sent(bounds, device)
    is_packed = config._attn_implementation == PACKED
    return {
        "position_ids": sent(position_ids.reshape(1, -1).clone() if is_packed else position_ids, device),
        "attention_mask": torch.zeros(1, 1, 1, 1) if is_packed else None,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for what a GPU has still to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Packs(NamedTuple):
    """Where samples begin and end, and how each of them attends: what a kernel below is told besides its tensors."""

    bounds: Tensor  # (S + 1,) int32, as `told_of` returns them
    longest: int  # tokens of the longest sample
    window: int | None = None  # tokens that one sees, itself included; None: all before it
    scale: float | None = None  # of the scores; None: 1 / sqrt(D)
    dropout: float = 0.0


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **rest: object,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do, each sample of a pack by itself.

    query        (B, H, L, D); key and value (B, H', L, D), where H' divides H
    returns      (B, L, H, D)
    Without bounds, as when text is generated, it is transformers' own SDPA.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **rest)
    rows, _, length, _ = query.shape
    tokens = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))  # (B·L, H, D)
    window = sliding_window if sliding_window is not None and sliding_window < max_length_q else None
    packs = Packs(cu_seq_lens_q, max_length_q, window, scaling, dropout)
    return kernel_for(query, dropout)(*tokens, packs).unflatten(0, (rows, length)), None


def kernel_for(query: Tensor, dropout: float) -> Callable[..., Tensor]:
    """Return the function that serves the samples of a query (B, H, L, D) on its device and in its type."""
    size = query.shape[-1]
    takes_flash = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    if not takes_flash or size > FLASH_HEADS or torch.cuda.get_device_capability(query.device) < (8, 0):
        return by_sample
    if flash_attn_varlen_func is not None:
        return by_flash_attn
    return by_sample if dropout or size % 8 else by_torch


def by_flash_attn(query: Tensor, key: Tensor, value: Tensor, packs: Packs) -> Tensor:
    """Attend in one call of flash-attn 2; tensors (T, H, D)."""
    return flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=packs.bounds,
        cu_seqlens_k=packs.bounds,
        max_seqlen_q=packs.longest,
        max_seqlen_k=packs.longest,
        dropout_p=packs.dropout,
        softmax_scale=packs.scale,
        causal=True,
        window_size=_window(packs.window),
    )


def by_torch(query: Tensor, key: Tensor, value: Tensor, packs: Packs) -> Tensor:
    """Attend in one call of torch's varlen attention, which has no dropout; tensors (T, H, D)."""
    return varlen.varlen_attn(
        query,
        key,
        value,
        packs.bounds,
        packs.bounds,
        packs.longest,
        packs.longest,
        scale=packs.scale,
        window_size=_window(packs.window),
        enable_gqa=query.shape[1] != key.shape[1],
    )


@torch.compiler.disable  # lengths differ from pack to pack
def by_sample(query: Tensor, key: Tensor, value: Tensor, packs: Packs) -> Tensor:
    """Attend in one call for each sample, or for all where they are equally long; tensors (T, H, D)."""
    lengths = packs.bounds.diff().tolist()
    if len(set(lengths)) > 1:
        samples = zip(*(states.split(lengths) for states in (query, key, value)), strict=True)
        return torch.cat([_alike(*sample, 1, packs) for sample in samples])
    return _alike(query, key, value, len(lengths), packs)


def _alike(query: Tensor, key: Tensor, value: Tensor, count: int, packs: Packs) -> Tensor:
    """Attend within `count` samples of one length; tensors (T, H, D)."""
    length, window = len(query) // count, packs.window
    band = None if window is None or length <= window else _band(length, window, query.device)
    states = (one.unflatten(0, (count, length)).transpose(1, 2) for one in (query, key, value))  # (N, H, l, D)
    is_grouped = query.shape[1] != key.shape[1]
    seen = scaled_dot_product_attention(
        *states,
        attn_mask=band,
        dropout_p=packs.dropout,
        is_causal=band is None,
        scale=packs.scale,
        enable_gqa=is_grouped,
    )
    return seen.transpose(1, 2).flatten(0, 1)


def _window(window: int | None) -> tuple[int, int]:
    """Return how many tokens before and after itself a token sees, as the flash kernels count; -1: all."""
    return (-1 if window is None else window - 1, 0)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Return which tokens see which in a window: themselves and the `window` - 1 before, bool (length, length)."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device)
    return seen.tril().triu(1 - window)


def _mask(*arguments: object, attention_mask: Tensor | None = None, **rest: object) -> Tensor | None:
    """Return transformers' mask where there is padding to hide, which generation has; packs need none."""
    return None if attention_mask is None else sdpa_mask(*arguments, attention_mask=attention_mask, **rest)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _mask)
