"""Settings of stage 05."""

import re
from dataclasses import dataclass, field
from enum import Enum

from vlm.config.data import SourceConfig
from vlm.config.endpoint import EndpointRuntime
from vlm.config.model import Dtype
from vlm.errors import Unusable


class Blind(Enum):
    """A second asking that tells what the model knows without looking."""

    shuffled = "shuffled"  # with the pictures of other samples
    removed = "removed"  # with no picture, and none spoken of


@dataclass
class SamplingConfig:
    """How the next token is chosen."""

    temperature: float = 0.0  # 0: always the most probable one
    top_p: float = 1.0  # among the most probable ones that have this share together
    top_k: int | None = None  # among so many of the most probable ones

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise Unusable("sampling: temperature is not negative, top_p is in (0, 1], top_k at least 1")


@dataclass
class TaskConfig:
    """One evaluation: the last answer of each conversation is asked for and compared.

    The conversations are a held-out split of stage 02, or are read from a benchmark's own files.
    """

    split: str = "finetune_held_out"  # of stage 02
    sources: list[SourceConfig] = field(default_factory=list)  # a benchmark's own files, in place of a split
    scorer: str = "exact_match"  # how an answer is marked: a name in SCORERS of vlm/eval/scorers.py
    max_new_tokens: int = 32  # of an answer
    limit: int | None = None  # ask only the first questions
    blind: list[Blind] = field(default_factory=lambda: [Blind.shuffled])
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise Unusable(f"a task's max_new_tokens={self.max_new_tokens} leaves no answer: it is at least 1")


@dataclass
class JudgeConfig:
    """A text model that marks answers, for tasks with scorer: judge."""

    model: str | None = None  # as the endpoint calls it
    prompt: str | None = None  # holds {question}, {reference} and {answer}; conf/eval/judge.yaml has one
    points: float = 10.0  # the most that it gives
    pattern: str = (
        r"(?im)^[\W_]*score[\s:=*_]*(\d+(?:\.\d+)?)"  # re: where its reply gives the points, the last place counts
    )
    max_tokens: int = 400  # of a reply
    temperature: float | None = 0.0  # null: the endpoint's own
    runtime: EndpointRuntime = field(default_factory=EndpointRuntime)

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as problem:
            raise Unusable(f"eval.judge.pattern {self.pattern!r} is no regular expression: {problem}") from None
        if groups != 1 or self.points <= 0:
            raise Unusable("eval.judge: pattern has one group, the points, and points is more than 0")
        if self.prompt is not None and "{answer}" not in self.prompt:
            raise Unusable("eval.judge.prompt has no {answer}: the judge would not see what it judges")


@dataclass
class EvalRuntime:
    """How the answers are made; they are the same."""

    batch_size: int = 64  # questions answered at once
    threads: int | None = None  # that one rank computes with on a CPU; null: one if there are several ranks, else all


@dataclass
class EvalConfig:
    """Stage 05."""

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    model: str | None = None  # a Llava folder, hub id, stage 03 or 04, checkpoint or adapter; null: this run's stage 04
    base: str | None = None  # the model folder below an adapter or a checkpoint, where it is not found by itself
    predictions: str | None = None  # score the <task>.jsonl of this folder, whoever wrote them; no model is loaded
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    against: str | None = None  # a run that was evaluated: the report shows its answers too, and which have changed
    compare: list[str] = field(default_factory=list)  # two runs that were evaluated: what changed between them
    dtype: Dtype | None = None  # null: bfloat16 on a GPU, float32 on a CPU
    gallery: int = 5000  # answers shown in the report
    runtime: EvalRuntime = field(default_factory=EvalRuntime)

    def __post_init__(self) -> None:
        if len(self.compare) not in (0, 2):
            raise Unusable(f"eval.compare=[{','.join(self.compare)}]: it takes two runs, like [before,after]")
        if self.runtime.threads is not None and self.runtime.threads < 1:
            raise Unusable(f"eval.runtime.threads={self.runtime.threads} is not at least 1, or null")
        if self.model and self.predictions:
            raise Unusable("eval.model and eval.predictions exclude each other: answers are made, or given")
