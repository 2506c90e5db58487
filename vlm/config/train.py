"""Settings of stages 03 and 04."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from vlm.config.model import Dtype
from vlm.errors import Unusable


class Strategy(Enum):
    """What trains: see vlm/train/strategy.py."""

    projector = "projector"
    full = "full"
    freeze_vision = "freeze_vision"
    lora = "lora"


class Schedule(Enum):
    """Learning rate after the warm-up: down to zero along a cosine or a line, or constant."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Recompute(Enum):
    """What the language model computes again in the backward pass, to hold less: see vlm/train/engine.py."""

    none = "none"
    selective = "selective"
    full = "full"


@dataclass
class LearningRates:
    """Peak learning rate of each part; only those of the parts that train are used."""

    projector: float = 1.0e-3
    language_model: float = 2.0e-5
    vision_tower: float = 2.0e-6
    lora: float = 2.0e-4


@dataclass
class LoraConfig:
    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.05
    targets: list[str] = field(  # names of linear layers inside the language model
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass
class TrainRuntime:
    """How the training is carried out; the result is the same up to floating-point order."""

    rows_at_once: int = 4  # packs that one rank computes at once
    workers: int = 1  # loader processes of one rank
    recompute: Recompute = Recompute.none  # activation checkpointing of the language model's layers
    compile: bool = False  # torch.compile of the language model's layers
    extend: bool = False  # go on with a run whose epochs or steps were raised; set by extend=true
    wandb: bool = False  # report to Weights & Biases too, where it is installed
    peak_tflops: float | None = None  # of one GPU in the forward pass's type, for MFU; null: known ones by name
    log_every: int = 10  # steps
    save_every: int = 500  # steps
    save_minutes: float | None = None  # and whenever this long has passed since the last; null: never
    keep: int = 2  # newest checkpoints
    keep_every: int | None = None  # and those of every so many steps; null: none
    max_skipped: int = 10  # steps skipped in a row, for a loss or gradient that is no number, that end the run
    watchdog_minutes: float | None = 60  # without a step that end the run with status 75; null: wait for ever


@dataclass
class TrainConfig:
    """Stages 03 and 04: one training."""

    strategy: Strategy = MISSING
    epochs: float = 1.0
    steps: int | None = None  # instead of epochs
    samples_per_step: int = 128  # the global batch, over all ranks
    pack_tokens: int = 2048  # a pack holds whole samples up to this many tokens
    pack_images: int = 64  # and up to this many pictures
    packing: bool = True  # false: one sample a row
    lr: LearningRates = field(default_factory=LearningRates)
    schedule: Schedule = Schedule.cosine
    warmup_ratio: float = 0.03  # of all steps
    weight_decay: float = 0.0  # never on norms and biases
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: float = 1.0
    skip_above: float | None = None  # skip a step whose loss is over this many times the usual one; null: never
    dtype: Dtype | None = None  # of the forward pass; null: bfloat16 on a GPU, float32 on a CPU
    lora: LoraConfig = field(default_factory=LoraConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's own keys, handed over as they are
    runtime: TrainRuntime = field(default_factory=TrainRuntime)

    def __post_init__(self) -> None:
        if self.samples_per_step < 1 or self.pack_tokens < 1:
            raise Unusable("samples_per_step and pack_tokens are at least 1")
        if len(self.betas) != 2:
            raise Unusable(f"betas={self.betas} are not two numbers")
        if self.skip_above is not None and self.skip_above <= 1:
            raise Unusable(f"skip_above={self.skip_above} would skip steps like any other: take more than 1, or null")
        if min(self.runtime.save_every, self.runtime.keep, self.runtime.max_skipped) < 1:
            raise Unusable("runtime.save_every, keep and max_skipped are at least 1")
        if not 0 <= self.warmup_ratio < 1:
            raise Unusable(f"warmup_ratio={self.warmup_ratio} is not in [0, 1)")
