"""What an evaluation found: every question with its answers, and the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlm.eval.score import TaskScore
from vlm.eval.tasks import Pictures, Place, Question


@dataclass(frozen=True)
class Unseen:
    """What was answered without the right pictures."""

    answer: str
    mark: float | None
    pictures: tuple[Place, ...] = ()  # what was shown instead


@dataclass(frozen=True)
class Answered:
    """A question with what the model said to it."""

    question: Question
    answer: str
    mark: float | None  # from 0 to 1, CIDEr up to 10; None if nobody marked it
    tokens: int = 0  # of the answer
    blind: Mapping[str, Unseen] = field(default_factory=dict)  # by condition: shuffled, removed

    @property
    def is_right(self) -> bool | None:
        """Whether it is more right than wrong; None if nobody marked it."""
        return None if self.mark is None else self.mark >= 0.5


@dataclass(frozen=True)
class Result:
    """A task that was asked and scored."""

    name: str
    split: Pictures
    answered: Sequence[Answered]  # in the order of the questions
    score: TaskScore
    metric: str = "accuracy"  # what the headline figure is called
