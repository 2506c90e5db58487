"""Settings of stage 05."""

from dataclasses import dataclass, field
from enum import Enum


class Scorer(Enum):
    """How an answer is compared with its reference."""

    exact_match = "exact_match"
    vqa_official = "vqa_official"  # agreement with many people's answers, as the VQA challenge counts it
    vqa_m4c = "vqa_m4c"  # the same, as TextVQA, LLaVA and lmms-eval count it
    choice = "choice"  # the letter of the right choice
    yes_no = "yes_no"  # POPE: also precision, recall, F1 and how often yes is said


@dataclass
class TaskConfig:
    """One evaluation: the last answer of each held-out conversation is asked for and compared."""

    split: str = "finetune_held_out"
    scorer: Scorer = Scorer.exact_match
    max_new_tokens: int = 32
    limit: int | None = None  # ask only the first questions
    shuffled: bool = True  # ask again with the pictures of other samples: what the model knows blind


@dataclass
class EvalRuntime:
    batch_size: int = 64


@dataclass
class EvalConfig:
    """Stage 05."""

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    gallery: int = 120  # answers shown in the report
    runtime: EvalRuntime = field(default_factory=EvalRuntime)
