"""What an evaluation found: every question with its answers, and the scores; and what two of them make of each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlm.eval.question import Place, Question
from vlm.eval.score import TaskScore
from vlm.eval.stats import Interval
from vlm.eval.tasks import Pictures


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
    remark: str = ""  # what a judge said of it

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


@dataclass(frozen=True)
class Before:
    """What another run answered to a question."""

    question: str
    answer: str
    mark: float | None


@dataclass(frozen=True)
class Earlier:
    """Another run's answers."""

    run: str
    tasks: Mapping[str, Mapping[str, Before]]  # by task and question id

    def answer_to(self, task: str, question: Question) -> Before | None:
        """Return what it answered to the same question; None if it was asked no such."""
        found = self.tasks.get(task, {}).get(question.id)
        return found if found and found.question == question.text else None


@dataclass(frozen=True)
class Changed:
    """A question whose answer is worth more, or less, than it was."""

    question_id: str
    category: str
    question: str
    references: tuple[str, ...]
    answers: tuple[str, str]
    marks: tuple[float, float]
    sample: int  # number in the split
    pictures: int


@dataclass(frozen=True)
class TaskComparison:
    """Two lists of marks of n questions: means, percent, their difference, and what chance would do."""

    metric: str
    n: int
    values: tuple[float, float]
    difference: float  # percentage points, the second less the first
    interval: Interval  # 95 %, of the difference
    p: float  # that chance alone makes such a difference
    test: str
    changed: tuple[Changed, ...]
    split: Pictures | None  # where the pictures are; None if they are there no more

    @property
    def gained(self) -> int:
        """How many answers are worth more than they were."""
        return sum(one.marks[1] > one.marks[0] for one in self.changed)

    @property
    def lost(self) -> int:
        """How many are worth less."""
        return len(self.changed) - self.gained


@dataclass(frozen=True)
class Comparison:
    """Two runs, and the tasks that both were asked."""

    runs: tuple[str, str]
    tasks: dict[str, TaskComparison]
