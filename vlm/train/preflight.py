"""What a training will need, from its settings and the index alone: steps, parameters, FLOPs, memory.

FLOPs of products with weights are those of vlm/train/flops.py: 2N forward, 4N where gradients only pass through, 6N
where N trains. Attention adds 2·2·width·length/2 a token forward (causal; the tower's is not) and twice that back
(Narayanan et al., 2021); what is recomputed adds its forward pass once more.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm.config import Dtype, ModelConfig, Recompute, Strategy, TrainConfig
from vlm.data.index import Split
from vlm.errors import Unusable
from vlm.model.footprint import language_bytes, outline, outline_of, vision_bytes
from vlm.model.forward import layers_used
from vlm.train import strategy
from vlm.train.flops import Cost
from vlm.train.memory import Sizes, memory, zero_stage
from vlm.train.planning import plan_of
from vlm.train.workload import Workload, workload, workload_shape

NF4_BYTES = 0.5 + 0.127 / 8  # of a weight: four bits, and its share of the doubly quantised scales (QLoRA, 2023)


@dataclass
class Estimate:
    """What a training will need."""

    workload: Workload
    parameters: dict[str, int]  # by part
    trainable: dict[str, int]  # by part
    flops: dict[str, float]  # of the whole training, by part
    memory: dict[str, int]  # of one rank, bytes
    host_memory: int  # of one rank, bytes that ZeRO's offload keeps outside the device
    dtype: str
    ranks: int
    checkpoint_bytes: int
    model_bytes: int
    rows_that_fit: dict[int, int] = field(default_factory=dict)  # memory by rows_at_once

    @property
    def bytes_needed(self) -> int:
        """Of one rank's device at its peak."""
        return sum(self.memory.values())

    @property
    def flops_per_step(self) -> float:
        return sum(self.flops.values()) / max(self.workload.steps, 1)


def figures(
    cfg: TrainConfig,
    seed: int,
    model: ModelConfig,
    *,
    base: Path | None,
    shards: Path | None,
    split: str,
    ranks: int,
    is_gpu: bool,
) -> dict[str, Any]:
    """Return the estimate of a stage as plain figures, from the artifacts that its inputs have so far.

    Raises Unusable if there are no shards yet, or the settings do not fit together.
    """
    if shards is None:
        raise Unusable(
            "an estimate needs the index of 02_shard, which is made without a GPU: run stages/02_shard.py first"
        )
    found = estimate(cfg, seed, model, base=base and base / "model", split=shards / split, ranks=ranks, is_gpu=is_gpu)
    return {**asdict(found), "keep": cfg.runtime.keep, "advice": advice(cfg)}


def advice(cfg: TrainConfig) -> str:
    """Return what to change when not even one row fits."""
    if cfg.runtime.recompute is Recompute.none:
        return "runtime.recompute=full, or a higher ZeRO stage, would need less"
    if zero_stage(cfg.deepspeed) < 3:
        return "a higher ZeRO stage, more devices or a smaller pack_tokens would need less"
    return "more devices, a smaller pack_tokens or finetune=lora would need less"


def estimate(
    cfg: TrainConfig, seed: int, model: ModelConfig, *, base: Path | None, split: Path, ranks: int, is_gpu: bool
) -> Estimate:
    """Estimate a training of `base` (or of what stage 01 would assemble) on a split.

    Raises Unusable if a config or the split is missing, or the settings do not fit together.
    """
    shards = Split(split)
    plan = plan_of(cfg, seed, shards)
    rows = cfg.runtime.rows_at_once
    work = workload(plan, ranks, rows, shards.manifest["image_tokens"])
    llava = outline_of(base) if base else outline(model)
    parameters = _by_part((name, weight.numel()) for name, weight in llava.named_parameters())
    bfloat16 = cfg.dtype is Dtype.bfloat16 or (cfg.dtype is None and is_gpu)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    with torch.device("meta"):
        whole, trainees = strategy.choose(llava.to(dtype), cfg.strategy, cfg.train, cfg.lora, lambda: None)
    whole.to(dtype)
    trainable = _by_part((trainee.name, trainee.weight.numel()) for trainee in trainees)
    count = sum(trainable.values())
    each = _activations(llava, work, dtype, recompute=cfg.runtime.recompute, trains_tower="vision_tower" in trainable)
    quantised = cfg.strategy is Strategy.qlora
    fits = {
        tried: memory(
            _sizes(llava, workload_shape(work, tried), each, dtype, trainees, ranks, is_gpu, quantised), cfg.deepspeed
        )
        for tried in sorted({1, 2, 4, 8, 16, 32, rows})
    }
    stored = {"bfloat16": 2, "float32": 4}[model.dtype.value]
    return Estimate(
        work,
        parameters,
        trainable,
        flops(whole, llava, work, cfg.runtime.recompute),
        fits[rows],
        count // ranks * 12 if "offload_optimizer" in cfg.deepspeed.get("zero_optimization", {}) else 0,
        "bfloat16" if bfloat16 else "float32",
        ranks,
        count * 12,  # weights and two moments, float32
        sum(parameters.values()) * stored,
        {tried: sum(items.values()) for tried, items in fits.items()},
    )


def flops(
    whole: nn.Module, llava: LlavaForConditionalGeneration, work: Workload, recompute: Recompute
) -> dict[str, float]:
    """Return the FLOPs of the whole training by part; `whole` is the model with its adapters."""
    text, vision = llava.config.text_config, llava.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    cost = Cost.of(whole, patches)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2.0 * width * text.num_attention_heads * work.squares * text.num_hidden_layers
    tower_attention = 4.0 * vision.hidden_size * (patches + 1) ** 2 * layers_used(llava) * work.images
    products = sum(w.numel() for n, w in whole.named_parameters() if w.ndim == 2 and _is_in_layers(n))
    forward = {Recompute.none: 0.0, Recompute.selective: 0.0, Recompute.full: 2.0 * products * work.tokens + attention}
    return {
        "language model": float(cost.token * work.tokens),
        "output layer": float(cost.target * work.targets),
        "tower and projector": float(cost.patch * patches * work.images),
        "attention": 3 * attention + tower_attention,
        "recomputed": forward[recompute],
    }


def _is_in_layers(name: str) -> bool:
    return "language_model." in name and ".layers." in name


def _by_part(named: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, size in named:
        part = strategy.part_of(name)
        if part is not None:
            found[part] = found.get(part, 0) + size
    return found


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass: of a row of the largest micro-batch, of one layer of it, and of a picture."""

    row: int
    layer: int
    picture: int


def _activations(
    llava: LlavaForConditionalGeneration,
    work: Workload,
    dtype: torch.dtype,
    *,
    recompute: Recompute,
    trains_tower: bool,
) -> Activations:
    picture = vision_bytes(llava, 1, dtype, trains_tower=trains_tower)
    text = llava.config.text_config
    everything = language_bytes(llava, 1, work.length, dtype)
    layer = everything // text.num_hidden_layers
    kept = {Recompute.none: layer, Recompute.full: 0, Recompute.selective: 0}[recompute]
    if recompute is not Recompute.none:
        kept = text.hidden_size * work.length * dtype.itemsize  # what goes into the layer
    if recompute is Recompute.selective:  # and what products and attention give (vlm/train/engine.py)
        one = llava.model.language_model.layers[0]
        widths = [module.out_features for module in one.modules() if isinstance(module, nn.Linear)]
        kept += (sum(widths) + one.self_attn.o_proj.in_features) * work.length * dtype.itemsize
    again = layer if recompute is not Recompute.none else 0  # of the layer that is computed again
    return Activations(kept * text.num_hidden_layers + again, layer, picture)


def _sizes(
    llava: LlavaForConditionalGeneration,
    work: Workload,
    each: Activations,
    dtype: torch.dtype,
    trainees: list[strategy.Trainee],
    ranks: int,
    is_gpu: bool,
    quantised: bool,
) -> Sizes:
    edge = llava.config.vision_config.image_size
    named = {n: w.numel() for n, w in llava.named_parameters() if ".original_module." not in n}
    weights = sum(named.values()) * dtype.itemsize
    if quantised:
        packed = sum(size for name, size in named.items() if "language_model" in name and "base_layer.weight" in name)
        weights -= round(packed * (dtype.itemsize - NF4_BYTES))
    return Sizes(
        weights,
        sum(named.values()),
        sum(trainee.weight.numel() for trainee in trainees),
        max((trainee.weight.numel() for trainee in trainees), default=0),
        dtype.itemsize,
        ranks,
        work.micro_batches,
        each.row * work.rows + each.picture * work.batch_images,
        each.layer * work.rows,
        work.batch_targets,
        llava.config.text_config.vocab_size,
        work.batch_images * 3 * edge * edge,
        is_gpu,
    )
