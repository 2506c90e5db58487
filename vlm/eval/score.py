"""Scores: a mark for each answer, their mean with its interval for each category, and the visual gain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm.errors import Unusable
from vlm.eval.captions import caption_scores
from vlm.eval.question import Question
from vlm.eval.scorers import CAPTIONS, SCORERS, Figures
from vlm.eval.stats import Interval, intervals, paired_test, share_interval


@dataclass(frozen=True)
class Marked:
    """What a scorer makes of all answers to a task."""

    marks: Sequence[float | None]  # by question, from 0 to 1, CIDEr up to 10; None if nobody marked it
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class BlindScore:
    """Percent without the right pictures, and what these add, percentage points."""

    value: float
    interval: Interval
    gain: float
    gain_interval: Interval
    p: float  # that chance alone makes such a gain


@dataclass(frozen=True)
class Score:
    """The mean mark of n questions, percent, with its 95 % interval."""

    n: int
    value: float
    interval: Interval
    blind: Mapping[str, BlindScore] = field(default_factory=dict)  # by condition: shuffled, removed


@dataclass(frozen=True)
class TaskScore:
    """Scores of a task, and of each of its categories in alphabetical order; no total where nothing is marked."""

    total: Score | None
    categories: Mapping[str, Score]
    figures: Figures = field(default_factory=dict)


def check_answers(questions: Sequence[Question], answers: Mapping[str, str]) -> None:
    """Check that every question is answered, and nothing else is.

    Raises Unusable, naming the first that is not.
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


def mark(questions: Sequence[Question], answers: Mapping[str, str], scorer: str) -> Marked:
    """Mark the answer to each question; those of a scorer that marks none stay without.

    Raises Unusable if one is not answered, an answer has no question, or a question lacks what its scorer needs.
    """
    check_answers(questions, answers)
    given = [answers[question.id] for question in questions]
    if scorer in CAPTIONS:
        references = [question.references for question in questions]
        return Marked(*caption_scores(given, references, chinese=scorer == "captions_zh"))
    how = SCORERS[scorer]
    if how.mark is None:
        return Marked([None] * len(given))
    marks = [how.mark(answer, question) for answer, question in zip(given, questions, strict=True)]
    return Marked(marks, how.figures(questions, given, marks))


def score(
    questions: Sequence[Question], seeing: Marked, blind: Mapping[str, Marked] | None = None, seed: int = 0
) -> TaskScore:
    """Return the means of all marks and of each category's, with intervals; `blind` are marks by condition."""
    blind = blind or {}
    found = [seeing, *blind.values()]  # what lacks one mark of them is left out: it would count as wrong
    marked = [number for number in range(len(questions)) if all(one.marks[number] is not None for one in found)]
    members: dict[str, list[int]] = {}
    for number in marked:
        members.setdefault(questions[number].category, []).append(number)

    def of(chosen: Sequence[int]) -> Score:
        groups = [questions[number].pictures or number for number in chosen]
        marks = [seeing.marks[number] for number in chosen]
        unseen = {name: [found.marks[number] or 0.0 for number in chosen] for name, found in blind.items()}
        return _score(marks, unseen, groups, seed)

    categories = {name: of(members[name]) for name in sorted(members)}
    return TaskScore(of(marked) if marked else None, categories, seeing.figures)


def _score(marks: Sequence[float], unseen: Mapping[str, Sequence[float]], groups: Sequence[Any], seed: int) -> Score:
    mean = sum(marks) / len(marks)
    found = {}
    for name, blind in unseen.items():
        gains = [mark - other for mark, other in zip(marks, blind, strict=True)]
        found[name] = BlindScore(
            value=100 * sum(blind) / len(blind),
            interval=_percent(share_interval(blind, groups, seed)),
            gain=100 * sum(gains) / len(gains),
            gain_interval=_percent(intervals([gains], groups, seed)[0]),
            p=paired_test(blind, marks, seed)[0],
        )
    return Score(len(marks), 100 * mean, _percent(share_interval(marks, groups, seed)), found)


def as_json(task: TaskScore, scorer: str) -> dict[str, Any]:
    """Return what metrics.json says of a task; percent with two decimals."""
    total = {"n": 0, "score": None, "interval": None, "blind": {}} if task.total is None else _score_json(task.total)
    return {
        "scorer": scorer,
        "metric": SCORERS[scorer].metric,
        **total,
        "categories": {name: _score_json(of) for name, of in task.categories.items()},
        "figures": {row: {name: _rounded(value) for name, value in of.items()} for row, of in task.figures.items()},
    }


def headline(task: TaskScore) -> dict[str, Any]:
    """Return the figures of a task that its artifact's record carries."""
    if task.total is None:
        return {"n": 0, "score": None, "interval": None}
    figures = {key: value for key, value in _score_json(task.total).items() if key != "blind"}
    for name, blind in task.total.blind.items():
        figures |= {name: _rounded(blind.value), f"visual_gain_over_{name}": _rounded(blind.gain)}
    return figures


def _score_json(of: Score) -> dict[str, Any]:
    blind = {
        name: {
            "score": _rounded(one.value),
            "interval": list(map(_rounded, one.interval)),
            "visual_gain": _rounded(one.gain),
            "gain_interval": list(map(_rounded, one.gain_interval)),
            "p": float(f"{one.p:.3g}"),
        }
        for name, one in of.blind.items()
    }
    return {"n": of.n, "score": _rounded(of.value), "interval": list(map(_rounded, of.interval)), "blind": blind}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _percent(interval: Interval) -> Interval:
    low, high = interval
    return 100 * low, 100 * high
