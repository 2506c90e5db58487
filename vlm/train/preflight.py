"""What a training will need, from its settings and the index alone: steps, parameters, FLOPs, memory.

FLOPs of one token through a linear layer of N weights: 2N forward, 2N for the gradient of its input, 2N for that of
its weights if they train; so 6N where it trains, 4N where gradients only pass through, 2N where none come. Attention:
2·2·width·length/2 a token forward (causal; the tower's is not), twice that back. Kaplan et al. 2020, Narayanan et al. 2021.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from vlm.config import Dtype, ModelConfig, Strategy, TrainConfig
from vlm.data.index import Split
from vlm.data.plan import Plan
from vlm.errors import Unusable
from vlm.model.footprint import language_bytes, outline, outline_of, vision_bytes
from vlm.model.forward import layers_used
from vlm.train import strategy
from vlm.train.memory import Sizes, memory, zero_stage
from vlm.train.planning import plan_of

NF4_BYTES = 0.5 + 0.127 / 8  # of a weight: four bits, and its share of the doubly quantised scales (QLoRA, 2023)


@dataclass
class Workload:
    """What a plan holds, over all ranks; exact."""

    steps: int = 0
    samples: int = 0
    images: int = 0
    packs: int = 0
    micro_batches: int = 0  # of the rank and step that has most
    tokens: int = 0  # image tokens included, padding not
    image_tokens: int = 0
    targets: int = 0
    padding: float = 0.0  # share of the computed positions
    squares: int = 0  # sum over samples of tokens squared, which attention costs
    rows: int = 1  # of the largest micro-batch
    length: int = 1  # tokens of each of its rows
    batch_images: int = 0
    batch_targets: int = 0


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
    stage = zero_stage(cfg.deepspeed)
    if stage < 3:
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
    each = _activations(llava, work, dtype, trains_tower="vision_tower" in trainable)
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
        flops(llava, work, trainable),
        fits[rows],
        count // ranks * 12 if "offload_optimizer" in cfg.deepspeed.get("zero_optimization", {}) else 0,
        "bfloat16" if bfloat16 else "float32",
        ranks,
        count * 12,  # weights and two moments, float32
        sum(parameters.values()) * stored,
        {tried: sum(items.values()) for tried, items in fits.items()},
    )


def workload(plan: Plan, ranks: int, rows_at_once: int, image_tokens: int) -> Workload:
    """Walk through every step of a plan as `ranks` ranks will."""
    tokens, images, targets = plan.tokens.tolist(), plan.images.tolist(), plan.targets.tolist()
    found = Workload(steps=plan.steps, samples=len(plan.order))
    positions = 0
    for step in range(plan.steps):
        packs = plan.packs(step, ranks)
        found.packs += sum(1 for pack in packs if pack)
        found.micro_batches = max(found.micro_batches, -(-len(packs) // ranks // rows_at_once))
        for rank in range(ranks):
            mine = packs[rank::ranks]
            for at in range(0, len(mine), rows_at_once):
                batch = mine[at : at + rows_at_once]
                length = max(1, *(sum(tokens[i] for i in pack) for pack in batch), 1)
                positions += len(batch) * length
                if len(batch) * length > found.rows * found.length:
                    found.rows, found.length = len(batch), length
                found.batch_images = max(found.batch_images, sum(images[i] for pack in batch for i in pack))
                found.batch_targets = max(found.batch_targets, sum(targets[i] for pack in batch for i in pack))
    order = plan.order
    found.images = int(plan.images[order].sum())
    found.tokens = int(plan.tokens[order].sum())
    found.image_tokens = found.images * image_tokens
    found.targets = int(plan.targets[order].sum())
    found.squares = int((plan.tokens[order] ** 2).sum())
    found.padding = 1 - found.tokens / max(positions, 1)
    return found


def workload_shape(work: Workload, rows: int) -> Workload:
    """Return a workload whose largest micro-batch has `rows` rows in place of its own."""
    share = rows / work.rows
    return replace(
        work,
        rows=rows,
        batch_images=round(work.batch_images * share),
        batch_targets=round(work.batch_targets * share),
        micro_batches=max(1, math.ceil(work.micro_batches / share)),
    )


def flops(llava: LlavaForConditionalGeneration, work: Workload, trainable: dict[str, int]) -> dict[str, float]:
    """Return the FLOPs of the whole training by part; the module's docstring has the formulas."""
    text, vision = llava.config.text_config, llava.config.vision_config
    is_layer = {id(weight) for layer in llava.model.language_model.modules() if isinstance(layer, torch.nn.Linear)
                for weight in layer.parameters()}  # fmt: skip
    linear = sum(w.numel() for n, w in llava.named_parameters() if id(w) in is_layer and "lora_" not in n)
    trains_language = "language_model" in trainable
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2 * width * text.num_attention_heads * work.squares * text.num_hidden_layers
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    layers = layers_used(llava)
    each = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    tower = work.images * layers * patches * (2 * each + 4 * patches * vision.hidden_size)
    head = llava.lm_head.weight.numel()
    return {
        "vision tower": float(tower * (3 if "vision_tower" in trainable else 1)),
        "projector": 6.0 * trainable.get("projector", 0) * work.image_tokens,
        "language model": (6.0 if trains_language else 4.0) * linear * work.tokens + 3.0 * attention,
        "adapters": 6.0 * trainable.get("lora", 0) * work.tokens,
        "output layer": (6.0 if trains_language else 4.0) * head * work.targets,
    }


def _by_part(named: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, size in named:
        part = strategy.part_of(name)
        if part is not None:
            found[part] = found.get(part, 0) + size
    return found


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass: of one row of the largest micro-batch, and of one picture."""

    row: int
    picture: int
    layers: int


def _activations(
    llava: LlavaForConditionalGeneration, work: Workload, dtype: torch.dtype, *, trains_tower: bool
) -> Activations:
    row = language_bytes(llava, 1, work.length, dtype)
    picture = vision_bytes(llava, 1, dtype, trains_tower=trains_tower)
    return Activations(row, picture, llava.config.text_config.num_hidden_layers)


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
        each.row * work.rows // each.layers,
        work.batch_targets,
        llava.config.text_config.vocab_size,
        work.batch_images * 3 * edge * edge,
        is_gpu,
    )
