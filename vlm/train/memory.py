"""Memory of one rank while it trains, item by item, in bytes.

What stays: weights, float32 masters, AdamW's two moments, DeepSpeed's buckets. What comes and goes: activations, logits,
gradients, the optimizer's temporaries. The peak is that of the moment of a step that needs most: the loss, the backward
pass at its beginning or its end, the sum over ranks, the update. On a CPU the copies that are saved stay until they are
written. What ZeRO spreads over the ranks, and which copies it makes, is from DeepSpeed 0.19.8's sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GPU_CONTEXT = 800 * 2**20  # CUDA's own, with NCCL's buffers
GPU_MARGIN = 0.05  # of the rest: blocks that the allocator cannot fill
UNSHARDED_BUCKET = 5 * 10**8  # gradients that DeepSpeed without ZeRO copies side by side before it sums them
CHECKPOINT_BYTES = 12  # of a trainable parameter: weight and two moments, float32, which the first rank's host copies
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
    again: int  # bytes that one layer of the language model keeps when it is computed again
    one_layer: int  # bytes that its backward pass needs beside what is kept
    targets: int  # of that micro-batch
    vocabulary: int
    pixels: int  # values of that micro-batch's pictures
    is_gpu: bool
    saves_midway: bool = True  # and not only after the last step: what is saved is written while training goes on


def zero_stage(deepspeed: Mapping[str, Any], *, bfloat16: bool = False) -> int:
    """Return the ZeRO stage of DeepSpeed's own keys; with `bfloat16`, the one that is carried out in it.

    There it is at least 1: what DeepSpeed does without ZeRO keeps float32 states that cannot be read back by parameter.
    """
    return max(int(deepspeed.get("zero_optimization", {}).get("stage", 0)), int(bfloat16))


def offloads(deepspeed: Mapping[str, Any], what: str) -> bool:
    """Say whether ZeRO keeps `what` (optimizer, param) in the host's memory."""
    return deepspeed.get("zero_optimization", {}).get(f"offload_{what}", {}).get("device", "none") != "none"


def memory(sizes: Sizes, deepspeed: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of each item at the peak; their sum is the estimate."""
    stage, mine = _carried_out(sizes, deepspeed), _own_share(sizes, deepspeed)
    stays, saved = _stays(sizes, deepspeed), 0 if sizes.is_gpu else sizes.trainable * CHECKPOINT_BYTES
    if sizes.saves_midway:
        stays["checkpoint"] = saved
    gradients = (mine if stage >= 2 else sizes.trainable) * sizes.weight_bytes
    before = {"gradients": gradients} if sizes.micro_batches > 1 else {}  # of the micro-batches before
    kept = {"activations": sizes.activations, "pixels": sizes.pixels * (1 + sizes.weight_bytes)}
    chunk = min(sizes.targets, LOGIT_CHUNK)
    logits = chunk * sizes.vocabulary * _logit_bytes(sizes)
    layer = {"one layer again": sizes.again, "one layer's backward": sizes.one_layer}
    bucket = min(sizes.trainable, UNSHARDED_BUCKET) * 4 if not stage else 0
    temporaries = 0 if offloads(deepspeed, "optimizer") else (mine if sizes.is_gpu else 2 * sizes.largest) * 4
    moments = [
        kept | {"logits": logits} | before,
        kept | layer | before,
        layer | {"gradients": gradients},
        {"gradients": gradients, "gradients side by side": bucket},
        {"gradients": gradients, "update's temporaries": temporaries},
        {"checkpoint": saved},
    ]
    items = stays | max(moments, key=lambda items: sum(items.values()))
    if sizes.is_gpu:
        items["context and margin"] = GPU_CONTEXT + round(GPU_MARGIN * sum(items.values()))
    return {name: size for name, size in items.items() if size}


def host_memory(sizes: Sizes, deepspeed: Mapping[str, Any]) -> int:
    """Return the bytes of the first rank in the host of a GPU: what ZeRO offloads, and the copies that it saves."""
    if not sizes.is_gpu:
        return 0
    weights = sizes.weights // sizes.ranks if offloads(deepspeed, "param") else 0
    states = _own_share(sizes, deepspeed) * CHECKPOINT_BYTES if offloads(deepspeed, "optimizer") else 0
    return weights + states + sizes.trainable * CHECKPOINT_BYTES


def traffic(sizes: Sizes, deepspeed: Mapping[str, Any]) -> tuple[int, int]:
    """Return the bytes that one rank sends in a step to other ranks, and exchanges with its host.

    A ring sends (N-1)/N of the data for each gather or scatter. Without ZeRO and in stage 1 gradients are summed once a
    step (a scatter and a gather); stage 2 scatters after each micro-batch; stage 3 also gathers all weights, forward
    and back (Rajbhandari et al., ZeRO, 2020, section 7).
    """
    stage, batches = _carried_out(sizes, deepspeed), max(1, sizes.micro_batches)
    gradients = sizes.trainable * sizes.weight_bytes
    sent = gradients * (batches if stage >= 2 else 1) + (2 * batches * sizes.weights if stage >= 3 else gradients)
    host = 2 * batches * sizes.weights // sizes.ranks if offloads(deepspeed, "param") else 0
    if offloads(deepspeed, "optimizer"):
        host += 2 * gradients // sizes.ranks
    return sent * (sizes.ranks - 1) // sizes.ranks, host


def _logit_bytes(sizes: Sizes) -> int:
    """Return the bytes of a logit with its softmax and gradient at the peak.

    On a GPU in bfloat16: softmax and gradient in float32, and the gradient once more; one H200 showed 9 to 10.4.
    """
    if sizes.weight_bytes == 2:
        return 10 if sizes.is_gpu else 16
    return 12


def _own_share(sizes: Sizes, deepspeed: Mapping[str, Any]) -> int:
    """Return the trainable parameters whose optimizer states one rank holds."""
    return -(-sizes.trainable // (sizes.ranks if _carried_out(sizes, deepspeed) else 1))


def _carried_out(sizes: Sizes, deepspeed: Mapping[str, Any]) -> int:
    return zero_stage(deepspeed, bfloat16=sizes.weight_bytes == 2)


def _stays(sizes: Sizes, deepspeed: Mapping[str, Any]) -> dict[str, int]:
    zero = deepspeed.get("zero_optimization", {})
    stage, mine = _carried_out(sizes, deepspeed), _own_share(sizes, deepspeed)
    is_bfloat16, is_offloaded = sizes.weight_bytes == 2, offloads(deepspeed, "optimizer")
    stays = {"weights": sizes.weights}
    if stage >= 3:
        live = min(sizes.parameters, int(zero.get("stage3_max_live_parameters", 1e9)))
        stays["weights"] = 0 if offloads(deepspeed, "param") else sizes.weights // sizes.ranks
        stays["gathered weights"] = live * sizes.weight_bytes
    stays["masters"] = 0 if is_offloaded or not (is_bfloat16 or stage >= 1) else mine * 4
    stays["moments"] = 0 if is_offloaded else mine * 8
    if stage >= 1:
        bucket = int(zero.get("reduce_bucket_size", 5e8)) * (2 if zero.get("overlap_comm") else 1)
        stays["buckets"] = (bucket if sizes.is_gpu else min(bucket, sizes.trainable)) * sizes.weight_bytes
    return stays
