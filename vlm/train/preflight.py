"""What a training will need, from its settings and the index alone: steps, parameters, FLOPs, memory, traffic."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vlm import ranks as here
from vlm.config import ADAPTED, Dtype, ModelConfig, Recompute, TrainConfig
from vlm.data.index import Split
from vlm.data.plan import Plan, make_plan
from vlm.model.footprint import outline, outline_of
from vlm.train.drawn import Drawn, by_part
from vlm.train.memory import CHECKPOINT_BYTES, host_memory, memory, traffic, zero_stage
from vlm.train.planning import planning
from vlm.train.workload import Loads, Workload, largest_workload, loads_of, workload

ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # rows_at_once that are tried
MORE_RANKS = (2, 4, 8, 16)  # times as many that are tried where nothing else would fit
AS_SET = "as set"  # DeepSpeed's keys, where they are none of conf/deepspeed/


@dataclass
class Choice:
    """What other settings would need: ZeRO stage by its name in conf/deepspeed/, recompute, rows_at_once, ranks."""

    zero: str
    recompute: str
    rows: int
    ranks: int
    memory: int  # of one rank, bytes
    flops: float  # of the whole training
    padding: float
    sent: int  # bytes that one rank sends in a step
    host_sent: int  # bytes that it exchanges with its host


@dataclass
class Estimate:
    """What a training will need."""

    workload: Workload
    parameters: dict[str, int]  # by part
    trainable: dict[str, int]  # by part
    flops: dict[str, float]  # of the whole training, by part
    memory: dict[str, int]  # of one rank, bytes
    host_memory: int  # of the first rank in a GPU's host, bytes: what ZeRO offloads, and copies while it saves
    strategy: str
    dtype: str
    ranks: int
    is_gpu: bool
    checkpoint_bytes: int
    model_bytes: int
    zero: str  # the settings as they are, one of `choices`
    recompute: str
    rows: int
    choices: list[Choice] = field(default_factory=list)

    @property
    def bytes_needed(self) -> int:
        """Of one rank's device at its peak."""
        return sum(self.memory.values())


def figures(
    cfg: TrainConfig,
    seed: int,
    model: ModelConfig,
    *,
    base: Path | None,
    shards: Path | None,
    split: str,
    max_tokens: int,
    ranks: int,
    is_gpu: bool | None,
    zeros: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the estimate of a stage as plain figures, from the artifacts that its inputs have so far.

    `is_gpu=None` asks this process's device; `zeros` are DeepSpeed's keys by name, that others are compared with.
    Without shards, steps and tokens are not known, and memory is that of the largest micro-batch the settings allow.
    Raises Unusable if a config or the split is missing, or the settings do not fit together.
    """
    found = estimate(
        cfg,
        seed,
        model,
        base=base and base / "model",
        split=shards and shards / split,
        max_tokens=max_tokens,
        ranks=ranks,
        is_gpu=here.device().type == "cuda" if is_gpu is None else is_gpu,
        zeros=zeros,
    )
    runtime = cfg.runtime
    return {
        **asdict(found),
        "keep": runtime.keep,
        "save_every": runtime.save_every,
        "save_minutes": runtime.save_minutes,
        "advice": advice(cfg),
    }


def advice(cfg: TrainConfig) -> str:
    """Return what to change when no setting of the same strategy fits."""
    if cfg.strategy in ADAPTED:
        return "a smaller pack_tokens or language model would need less"
    return "finetune=lora, finetune=qlora or a smaller pack_tokens would need less"


def estimate(
    cfg: TrainConfig,
    seed: int,
    model: ModelConfig,
    *,
    base: Path | None,
    split: Path | None,
    ranks: int,
    is_gpu: bool,
    max_tokens: int = 2048,
    zeros: Mapping[str, Mapping[str, Any]] | None = None,
) -> Estimate:
    """Estimate a training of `base` (or of what stage 01 would assemble) on a split (or on the longest samples).

    Raises Unusable if a config or the split is missing, or the settings do not fit together.
    """
    bfloat16 = cfg.dtype is Dtype.bfloat16 or (cfg.dtype is None and is_gpu)
    llava = outline_of(base) if base else outline(model)
    parameters = by_part((name, weight.numel()) for name, weight in llava.named_parameters())
    drawn = Drawn.of(cfg, llava, torch.bfloat16 if bfloat16 else torch.float32, is_gpu=is_gpu)
    works = _works(cfg, seed, split, ranks, max_tokens, drawn.patches)
    keys = dict(zeros or {})
    zero = next((name for name, value in keys.items() if value == cfg.deepspeed), AS_SET)
    keys[zero] = cfg.deepspeed
    rows, recompute = cfg.runtime.rows_at_once, cfg.runtime.recompute
    mine = drawn.sizes(works[rows], recompute, ranks, is_gpu=is_gpu)
    return Estimate(
        works[rows],
        parameters,
        drawn.trainable,
        drawn.flops(works[rows], recompute),
        memory(mine, cfg.deepspeed),
        host_memory(mine, cfg.deepspeed),
        cfg.strategy.value,
        "bfloat16" if bfloat16 else "float32",
        ranks,
        is_gpu,
        sum(drawn.trainable.values()) * CHECKPOINT_BYTES,
        sum(parameters.values()) * {"bfloat16": 2, "float32": 4}[model.dtype.value],
        zero,
        recompute.value,
        rows,
        _choices(drawn, works, keys, ranks, is_gpu),
    )


def _choices(
    drawn: Drawn, works: Mapping[int, Workload], zeros: Mapping[str, Mapping[str, Any]], ranks: int, is_gpu: bool
) -> list[Choice]:
    """Return what every ZeRO stage, recomputation and micro-batch would need, and ZeRO-3 on more ranks."""
    tried = [(rows, how, ranks) for how in Recompute for rows in works]
    tried += [(1, Recompute.full, ranks * times) for times in MORE_RANKS]
    operations = {how: sum(drawn.flops(works[1], how).values()) for how in Recompute}
    found = []
    for rows, how, count in tried:
        work = works[rows]
        sizes = drawn.sizes(work, how, count, is_gpu=is_gpu)
        for name, deepspeed in zeros.items():
            if count == ranks or zero_stage(deepspeed) == 3:
                needed = sum(memory(sizes, deepspeed).values())
                sent = traffic(sizes, deepspeed)
                found.append(Choice(name, how.value, rows, count, needed, operations[how], work.padding, *sent))
    return found


def _works(
    cfg: TrainConfig, seed: int, split: Path | None, ranks: int, max_tokens: int, image_tokens: int
) -> dict[int, Workload]:
    """Return the workload of every rows_at_once that is tried, up to where a rank has no more rows in a step."""
    tried = sorted({*ROWS, cfg.runtime.rows_at_once})
    if split is None:
        return {rows: largest_workload(cfg, rows, max_tokens, image_tokens) for rows in tried}
    plan, loads, image_tokens = _planned(split, seed, ranks, tuple(planning(cfg).items()))
    found: dict[int, Workload] = {}
    for rows in tried:
        found[rows] = workload(plan, loads, ranks, rows, image_tokens)
        if found[rows].micro_batches == 1 and rows >= cfg.runtime.rows_at_once:
            break
    return found


@lru_cache(maxsize=1)  # strategies that are compared share their plan
def _planned(
    split: Path, seed: int, ranks: int, settings: tuple[tuple[str, Any], ...]
) -> tuple[Plan, list[Loads], int]:
    shards = Split(split)
    plan = make_plan(shards.rows, seed, **dict(settings))
    return plan, loads_of(plan, ranks), shards.manifest["image_tokens"]
