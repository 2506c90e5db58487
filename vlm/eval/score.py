"""Scores: a mark in [0, 1] for each answer, accuracy with its interval for each category, and the visual gain."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm.config import Scorer
from vlm.errors import Unusable
from vlm.eval.choice import parsed_choice
from vlm.eval.tasks import Question
from vlm.eval.vqa import m4c, official
from vlm.eval.yes_no import YesNo, pope, said_yes

Z = 1.959964  # half-width of a 95 % interval, in standard deviations


@dataclass(frozen=True)
class Accuracy:
    """How many of n answers are right; an answer may be right in part."""

    n: int
    right: float

    @property
    def percent(self) -> float:
        """The share of right answers."""
        return 100 * self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share, percent; wider than need be where answers are right in part.

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
    yes_no: dict[str, YesNo] | None = None  # by category, and "all", if the answers are yes or no


def exact_match(answer: str, reference: str) -> bool:
    """Compare without regard to case, outer space and one full stop at the end."""
    return _plain(answer) == _plain(reference)


SCORERS: dict[Scorer, Callable[[str, Question], float]] = {
    Scorer.exact_match: lambda answer, question: float(exact_match(answer, question.reference)),
    Scorer.vqa_official: lambda answer, question: official(answer, _known(question, "answers")),
    Scorer.vqa_m4c: lambda answer, question: m4c(answer, _known(question, "answers")),
    Scorer.choice: lambda answer, question: float(
        parsed_choice(answer, _known(question, "choices")) == _known(question, "correct_choice_idx")
    ),
    Scorer.yes_no: lambda answer, question: float(said_yes(answer) == label_of(question)),
}


def marks(questions: Sequence[Question], answers: Mapping[str, str], scorer: Scorer) -> list[float]:
    """Return a mark for each question, from 0 to 1 if its answer is right.

    Raises Unusable if one is not answered, an answer has no question, or a question lacks what its scorer needs.
    """
    if not questions:
        raise Unusable("there is no question to be scored")
    unknown = answers.keys() - {question.id for question in questions}
    if unknown:
        raise Unusable(
            f"{len(unknown)} answers are to questions that were not asked, {min(unknown)} first: "
            "the predictions are of another task"
        )
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise Unusable(f"{len(missing)} of {len(questions)} questions have no answer, {missing[0]} first")
    return [SCORERS[scorer](answers[question.id], question) for question in questions]


def label_of(question: Question) -> bool:
    """Return whether yes is the right answer.

    Raises Unusable if the reference is neither yes nor no.
    """
    label = _plain(question.reference)
    if label not in {"yes", "no"}:
        raise Unusable(f"question {question.id}: its reference is {question.reference!r}, not yes or no")
    return label == "yes"


def yes_no_figures(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, YesNo]:
    """Return POPE's figures of all questions and of each category; they are joined by question_id."""
    groups: dict[str, list[Question]] = {"all": list(questions)}
    for question in questions:
        if question.category != "all":
            groups.setdefault(question.category, []).append(question)
    return {
        name: pope([said_yes(answers[one.id]) for one in group], [label_of(one) for one in group])
        for name, group in groups.items()
    }


def score(questions: Sequence[Question], seeing: Sequence[float], shuffled: Sequence[float] | None) -> TaskScore:
    """Count the marks of all questions and of each category."""

    def of(chosen: Sequence[int]) -> Score:
        return Score(_accuracy(seeing, chosen), None if shuffled is None else _accuracy(shuffled, chosen))

    members: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        members.setdefault(question.category, []).append(number)
    return TaskScore(of(range(len(questions))), {name: of(members[name]) for name in sorted(members)})


def as_json(task: TaskScore) -> dict[str, Any]:
    """Return what metrics.json says of a task; percent with two decimals."""
    figures = _score_json(task.total) | {"categories": {name: _score_json(s) for name, s in task.categories.items()}}
    if task.yes_no is not None:
        figures["yes_no"] = {name: _yes_no_json(of) for name, of in task.yes_no.items()}
    return figures


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


def _yes_no_json(of: YesNo) -> dict[str, Any]:
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(of).items()}


def _accuracy(is_right: Sequence[float], chosen: Sequence[int]) -> Accuracy:
    return Accuracy(len(chosen), sum(is_right[number] for number in chosen))


def _known(question: Question, key: str) -> Any:  # noqa: ANN401  what JSON holds
    """Return what the corpus says under `key`.

    Raises Unusable if it says nothing.
    """
    if question.extra.get(key) in (None, []):
        raise Unusable(f"question {question.id} has no '{key}', which this scorer needs: choose another scorer=")
    return question.extra[key]


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()
