"""Scores: right or wrong for each answer, accuracy with its interval for each category, and the visual gain."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.config import Scorer
from vlm.errors import Unusable
from vlm.eval.tasks import Question

Z = 1.959964  # half-width of a 95 % interval, in standard deviations


@dataclass(frozen=True)
class Accuracy:
    """How many of n answers are right."""

    n: int
    right: int

    @property
    def percent(self) -> float:
        """The share of right answers."""
        return 100 * self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share, percent.

        Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
        """
        share, spread = self.right / self.n, Z**2 / self.n
        centre = (share + spread / 2) / (1 + spread)
        half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
        return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


@dataclass(frozen=True)
class Score:
    """Accuracy with the pictures, and with the pictures of other samples if that was asked."""

    seeing: Accuracy
    shuffled: Accuracy | None

    @property
    def visual_gain(self) -> float | None:
        """What the right pictures add, percentage points."""
        return None if self.shuffled is None else self.seeing.percent - self.shuffled.percent


@dataclass(frozen=True)
class TaskScore:
    """Scores of a task, and of each of its categories in alphabetical order."""

    total: Score
    categories: dict[str, Score]


def exact_match(answer: str, reference: str) -> bool:
    """Compare without regard to case, outer space and one full stop at the end."""
    return _plain(answer) == _plain(reference)


SCORERS = {Scorer.exact_match: exact_match}


def marks(questions: Sequence[Question], answers: Mapping[str, str], scorer: Scorer) -> list[bool]:
    """Return for each question whether its answer is right.

    Raises Unusable if one is not answered.
    """
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise Unusable(f"{len(missing)} of {len(questions)} questions have no answer, {missing[0]} first")
    return [SCORERS[scorer](answers[question.id], question.reference) for question in questions]


def score(questions: Sequence[Question], seeing: Sequence[bool], shuffled: Sequence[bool] | None) -> TaskScore:
    """Count the marks of all questions and of each category."""

    def of(chosen: Sequence[int]) -> Score:
        return Score(_accuracy(seeing, chosen), None if shuffled is None else _accuracy(shuffled, chosen))

    members: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        members.setdefault(question.category, []).append(number)
    return TaskScore(of(range(len(questions))), {name: of(members[name]) for name in sorted(members)})


def as_json(task: TaskScore) -> dict[str, Any]:
    """Return what metrics.json says of a task; percent with two decimals."""
    return _score_json(task.total) | {"categories": {name: _score_json(s) for name, s in task.categories.items()}}


def headline(task: TaskScore) -> dict[str, Any]:
    """Return the figures of a task that its artifact's record carries."""
    figures = _score_json(task.total)
    shuffled = figures["shuffled"]
    return figures | {"shuffled": shuffled and shuffled["accuracy"]}


def _score_json(of: Score) -> dict[str, Any]:
    shuffled = None if of.shuffled is None else _accuracy_json(of.shuffled)
    gain = None if of.visual_gain is None else round(of.visual_gain, 2)
    return {"n": of.seeing.n, **_accuracy_json(of.seeing), "shuffled": shuffled, "visual_gain": gain}


def _accuracy_json(of: Accuracy) -> dict[str, Any]:
    return {"accuracy": round(of.percent, 2), "interval": [round(bound, 2) for bound in of.interval]}


def _accuracy(is_right: Sequence[bool], chosen: Sequence[int]) -> Accuracy:
    return Accuracy(len(chosen), sum(is_right[number] for number in chosen))


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()
