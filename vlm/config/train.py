"""Settings of stages 03 and 04."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from vlm.config.eval import TaskConfig
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
class EvaluationConfig:
    """Looks at the model while it trains, on the split's held-out samples; off unless `every` or `each_epoch` is set.

    Without patience they change nothing of the training and count in no key.
    """

    every: int | None = None  # steps
    each_epoch: bool = False
    samples: int | None = 512  # of the held-out split, for the loss; null: all
    answers: int = 0  # questions of each task that are asked and scored, as in stage 05
    tasks: dict[str, TaskConfig] = field(default_factory=lambda: {"questions": TaskConfig(shuffled=False)})
    shown: int = 16  # answers of each task in samples.html
    metric: str = "loss"  # what is best: the held-out loss, or the accuracy of a task
    keep_best: int = 0  # checkpoints, in best/
    patience: int | None = None  # looks without a new best that end the training early; the best is then exported

    @property
    def is_on(self) -> bool:
        return self.every is not None or self.each_epoch

    def __post_init__(self) -> None:
        if self.metric not in ("loss", *self.tasks):
            raise Unusable(f"evaluation.metric={self.metric} is neither loss nor one of {', '.join(self.tasks)}")
        if self.metric != "loss" and not self.answers:
            raise Unusable(f"evaluation.metric={self.metric} needs answers: set evaluation.answers")
        for name in ("every", "samples", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise Unusable(f"evaluation.{name}={value} is not at least 1")
        if self.patience is not None:
            self.keep_best = max(1, self.keep_best)
        if not self.is_on and (self.patience is not None or self.keep_best):
            raise Unusable("evaluation.patience and keep_best need looks: set evaluation.every or each_epoch")


@dataclass
class TrainRuntime:
    """How the training is carried out; the result is the same up to floating-point order."""

    rows_at_once: int = 4  # packs that one rank computes at once
    workers: int = 1  # loader processes of one rank
    log_every: int = 10  # steps
    save_every: int = 500  # steps
    keep: int = 2  # checkpoints


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
    dtype: Dtype | None = None  # of the forward pass; null: bfloat16 on a GPU, float32 on a CPU
    lora: LoraConfig = field(default_factory=LoraConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's own keys, handed over as they are
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: TrainRuntime = field(default_factory=TrainRuntime)

    def __post_init__(self) -> None:
        if self.samples_per_step < 1 or self.pack_tokens < 1:
            raise Unusable("samples_per_step and pack_tokens are at least 1")
        if len(self.betas) != 2:
            raise Unusable(f"betas={self.betas} are not two numbers")
        if not 0 <= self.warmup_ratio < 1:
            raise Unusable(f"warmup_ratio={self.warmup_ratio} is not in [0, 1)")
