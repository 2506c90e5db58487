"""Settings of stages 03 and 04."""

import math
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
    qlora = "qlora"


ADAPTED = (Strategy.lora, Strategy.qlora)  # strategies whose language model is frozen under adapters


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
    """Peak learning rate of each part; only those of the parts that train are used, and each of these has one."""

    projector: float | None = None
    language_model: float | None = None
    vision_tower: float | None = None
    lora: float | None = None
    embeddings: float | None = None  # the language model's, input and output; null: its rate
    vision_layer_decay: float = 1.0  # below the tower's last layer that trains, each has this much of the next one's

    def __post_init__(self) -> None:
        if not 0 < self.vision_layer_decay <= 1:
            raise Unusable(f"lr.vision_layer_decay={self.vision_layer_decay} is not in (0, 1]")


@dataclass
class Parts:
    """Which parts train; null: as the strategy's name says."""

    projector: bool | None = None
    language_model: bool | None = None
    vision_tower: bool | None = None
    embeddings: bool | None = None  # null: with the language model


@dataclass
class LoraConfig:
    """Low-rank adapters. What decides their size and strength has no default: it stands in conf/finetune/."""

    rank: int | None = None
    alpha: float | None = None  # adapters are scaled by alpha / rank
    dropout: float | None = None
    targets: list[str] | None = None  # names of linear layers inside the language model
    targets_regex: str | None = None  # instead: of names inside the language model, such as layers\.[0-7]\..*\.v_proj
    dora: bool = False  # directions by the adapter, lengths by vectors of their own (arXiv 2402.09353); lora alone
    rslora: bool = False  # scale by alpha / sqrt(rank) (arXiv 2312.03732)

    def check(self) -> None:
        """Raise Unusable unless all that an adapter needs is given."""
        for name in ("rank", "alpha", "dropout"):
            if getattr(self, name) is None:
                raise Unusable(
                    f"lora.{name} has no value: adapters are scaled by alpha / rank, so say both and dropout"
                )
        if (self.targets is None) is (self.targets_regex is None):
            raise Unusable("say either lora.targets or lora.targets_regex, and set the other to null")
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise Unusable(f"lora: rank={self.rank}, alpha={self.alpha} or dropout={self.dropout} cannot be")


@dataclass
class EvaluationConfig:
    """Looks at the model while it trains, on the split's held-out samples; off unless `every` or `each_epoch` is set.

    Without patience they change nothing of the training and count in no key.
    """

    every: int | None = None  # steps
    each_epoch: bool = False
    samples: int | None = 512  # of the held-out split, for the loss; null: all
    answers: int = 0  # questions of each task that are asked and scored, as in stage 05
    tasks: dict[str, TaskConfig] = field(default_factory=lambda: {"questions": TaskConfig(blind=[])})
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
    threads: int | None = None  # that one rank computes with on a CPU; null: one if there are several ranks, else all
    recompute: Recompute = Recompute.none  # activation checkpointing of the language model's layers
    compile: bool = False  # torch.compile of the language model's layers
    deterministic: bool = False  # on a GPU: only kernels that give the same bits each time, as a CPU's do
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
    epochs: float = 1.0  # passes over the split
    steps: int | None = None  # instead of epochs
    samples_per_step: int = 128  # the global batch, over all ranks
    pack_tokens: int = 2048  # a pack holds whole samples up to this many tokens
    pack_images: int = 64  # and up to this many pictures
    packing: bool = True  # false: one sample a row
    shards_at_once: int | None = None  # samples come out of so many shards at a time, for slow disks; null: all
    train: Parts = field(default_factory=Parts)
    lr: LearningRates = field(default_factory=LearningRates)
    schedule: Schedule = Schedule.cosine
    warmup_ratio: float = 0.03  # of all steps
    warmup_steps: int | None = None  # instead of warmup_ratio
    weight_decay: float = 0.0  # never on norms and biases
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: float = 1.0  # longer gradients, over all that trains, are scaled down to it
    skip_above: float | None = None  # skip a step whose loss is over this many times the usual one; null: never
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
        if self.skip_above is not None and self.skip_above <= 1:
            raise Unusable(f"skip_above={self.skip_above} would skip steps like any other: take more than 1, or null")
        runtime = self.runtime
        if min(runtime.save_every, runtime.keep, runtime.max_skipped) < 1:
            raise Unusable("runtime.save_every, keep and max_skipped are at least 1")
        if runtime.threads is not None and runtime.threads < 1:
            raise Unusable(f"runtime.threads={runtime.threads} is not at least 1, or null")
        if not 0 <= self.warmup_ratio < 1:
            raise Unusable(f"warmup_ratio={self.warmup_ratio} is not in [0, 1)")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise Unusable(f"warmup_steps={self.warmup_steps} is not at least 0")
        if self.shards_at_once is not None and self.shards_at_once < 1:
            raise Unusable(f"shards_at_once={self.shards_at_once} is not at least 1, or null")
        if isinstance(self.strategy, Strategy):
            self._check_strategy()

    def warmup(self, steps: int) -> int:
        """Return the steps of the warm-up, of so many in all."""
        return math.ceil(self.warmup_ratio * steps) if self.warmup_steps is None else self.warmup_steps

    def _check_strategy(self) -> None:
        """Raise Unusable where parts, rates and strategy contradict each other."""
        if self.strategy in ADAPTED:
            self.lora.check()
            for part in ("language_model", "vision_tower", "embeddings"):
                if getattr(self.train, part):
                    raise Unusable(f"train.{part}=true: under {self.strategy.value} adapters and projector alone train")
        if self.strategy is Strategy.qlora and self.lora.dora:
            raise Unusable("lora.dora=true belongs to finetune=lora: its lengths would be those of the quantised base")
        if (
            self.strategy is Strategy.lora
            and self.lora.dora
            and self.deepspeed.get("zero_optimization", {}).get("stage") == 3
        ):
            raise Unusable(
                "lora.dora=true needs weights that are whole on each rank: choose ZeRO 2, or lora.dora=false"
            )
        for part in ("projector", "language_model", "vision_tower", "embeddings"):
            if getattr(self.train, part) is False and getattr(self.lr, part) is not None:
                raise Unusable(
                    f"lr.{part}={getattr(self.lr, part):g} is given, but train.{part}=false freezes it: "
                    f"say lr.{part}=null"
                )
