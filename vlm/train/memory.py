"""Memory of one rank while it trains, item by item, in bytes.

What stays: weights, float32 masters, AdamW's two moments. What comes and goes: gradients, activations, logits, pixels,
DeepSpeed's buckets, the optimizer's temporaries. The peak is that of the backward pass or of the update, whichever is
larger. What ZeRO spreads over the ranks, and which copies it makes, is from DeepSpeed 0.19.8's sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GPU_CONTEXT = 800 * 2**20  # CUDA's own, with NCCL's buffers
GPU_MARGIN = 0.05  # of the rest: blocks that the allocator cannot fill
LOGIT_CHUNK = 4096  # targets whose logits exist at once: vlm/model/forward.py


@dataclass(frozen=True)
class Sizes:
    """What memory follows from."""

    weights: int  # bytes of all parameters in the forward pass
    parameters: int
    trainable: int
    largest: int  # trainable parameters of the largest tensor
    weight_bytes: int  # of one parameter in the forward pass: 2 (bfloat16) or 4 (float32)
    ranks: int
    micro_batches: int  # of one rank in a step
    activations: int  # bytes kept for the backward pass of the largest micro-batch
    one_layer: int  # bytes that one layer of the language model keeps
    targets: int  # of that micro-batch
    vocabulary: int
    pixels: int  # values of that micro-batch's pictures
    is_gpu: bool


def zero_stage(deepspeed: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of DeepSpeed's own keys."""
    return int(deepspeed.get("zero_optimization", {}).get("stage", 0))


def memory(sizes: Sizes, deepspeed: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of each item at the peak; their sum is the estimate."""
    zero = deepspeed.get("zero_optimization", {})
    stage, offloads = zero_stage(deepspeed), zero.get("offload_optimizer", {}).get("device") == "cpu"
    bfloat16 = sizes.weight_bytes == 2
    spread = sizes.ranks if stage >= 1 or bfloat16 else 1  # without ZeRO, DeepSpeed spreads bfloat16's masters alone
    mine = -(-sizes.trainable // spread)

    stays = {"weights": sizes.weights}
    if stage >= 3:
        live = min(sizes.parameters, int(zero.get("stage3_max_live_parameters", 1e9)))
        stays["weights"] = stays["weights"] // sizes.ranks
        stays["gathered weights"] = live * sizes.weight_bytes
    stays["masters"] = 0 if offloads or not (bfloat16 or stage >= 1) else mine * 4
    stays["moments"] = 0 if offloads else mine * 8

    gradients = sizes.trainable * (4 if not stage and bfloat16 else 0) + (
        (mine if stage >= 2 else sizes.trainable) * sizes.weight_bytes
    )
    bucket = int(zero.get("reduce_bucket_size", 5e8)) * (2 if zero.get("overlap_comm") else 1) if stage >= 1 else 0
    buckets = (bucket if sizes.is_gpu else min(bucket, sizes.trainable)) * sizes.weight_bytes
    chunk = min(sizes.targets, LOGIT_CHUNK)
    backward = {
        "activations": sizes.activations,
        "one layer's backward": sizes.one_layer,
        "logits": chunk * sizes.vocabulary * (16 if bfloat16 else 12),  # themselves, their softmax, their gradient
        "pixels": sizes.pixels * (1 + sizes.weight_bytes),
    }
    temporaries = 0 if offloads else (mine if sizes.is_gpu else 2 * sizes.largest) * 4
    update = {"gradients": gradients, "update's temporaries": temporaries}
    if sizes.micro_batches > 1:
        backward["gradients"] = gradients  # of the micro-batches before
    peak = max(backward, update, key=lambda items: sum(items.values()))
    items = stays | peak | {"buckets": buckets}
    if sizes.is_gpu:
        items["context and margin"] = GPU_CONTEXT + round(GPU_MARGIN * sum(items.values()))
    return {name: size for name, size in items.items() if size}
