"""Scorers: how the answer to a question is marked. A new one is a function and a line in SCORERS, whose name there is
then a task's `scorer:`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.config import TaskConfig
from vlm.errors import Unusable, unknown
from vlm.eval.choice import choice_figures, parsed_choice
from vlm.eval.question import Question
from vlm.eval.vqa import m4c, official
from vlm.eval.yes_no import label_of, mme_answer, pair_figures, said_yes, yes_no_figures

Figures = dict[str, dict[str, float | None]]
"""A scorer's own figures, percent: a row for all answers and one for each category, and their names."""

CAPTIONS = ("captions", "captions_zh")  # marked all at once, by vlm/eval/captions.py
JUDGE = "judge"  # marked by a text model, by vlm/eval/judge.py


@dataclass(frozen=True)
class Scorer:
    """What the mean of its marks is called, the mark of one answer, and the figures of all besides their mean."""

    metric: str
    mark: Callable[[str, Question], float] | None = None  # from 0 to 1; None: answers are not marked one by one
    figures: Callable[[Sequence[Question], Sequence[str], Sequence[float]], Figures] = lambda *_: {}


def scorer_of(name: str, task: TaskConfig) -> Scorer:
    """Return the scorer of the task `name`.

    Raises Unusable if there is none as the task calls it.
    """
    if task.scorer not in SCORERS:
        raise unknown(f"task {name}", "scorer", task.scorer, SCORERS)
    return SCORERS[task.scorer]


def exact_match(answer: str, reference: str) -> bool:
    """Compare without regard to case, outer space and one full stop at the end."""
    return _plain(answer) == _plain(reference)


def chosen(answer: str, question: Question) -> float:
    """Mark the letter of the right choice."""
    return float(parsed_choice(answer, _known(question, "choices")) == _known(question, "correct_choice_idx"))


def dialects(questions: Sequence[Question], answers: Sequence[str], marks: Sequence[float]) -> Figures:
    """Return VQA accuracy in both dialects, each by its name."""
    both = {"official": _official, "m4c": _m4c}
    means = {}
    for name, of in both.items():
        found = [of(answer, question) for answer, question in zip(answers, questions, strict=True)]
        means[name] = 100 * sum(found) / len(found)
    return {"all": means}


def _official(answer: str, question: Question) -> float:
    return official(answer, _known(question, "answers"))


def _m4c(answer: str, question: Question) -> float:
    return m4c(answer, _known(question, "answers"))


def _known(question: Question, key: str) -> Any:  # noqa: ANN401  what JSON holds
    """Return what the corpus says under `key`.

    Raises Unusable if it says nothing.
    """
    if question.extra.get(key) in (None, []):
        raise Unusable(f"question {question.id} has no '{key}', which this scorer needs: choose another scorer=")
    return question.extra[key]


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


SCORERS = {
    "exact_match": Scorer("exact match", lambda answer, question: float(exact_match(answer, question.reference))),
    # agreement with many people's answers, as the VQA challenge counts it, and as TextVQA, LLaVA and lmms-eval do
    "vqa_official": Scorer("VQA accuracy (official)", _official, dialects),
    "vqa_m4c": Scorer("VQA accuracy (m4c)", _m4c, dialects),
    # the letter of the right choice
    "choice": Scorer("accuracy", chosen, choice_figures),
    # POPE: also precision, recall, F1 and how often yes is said
    "yes_no": Scorer(
        "accuracy",
        lambda answer, question: float(said_yes(answer) == label_of(question)),
        lambda questions, answers, marks: yes_no_figures(questions, answers),
    ),
    # MME: two questions about each picture; acc, and acc+ where both are right
    "yes_no_pairs": Scorer(
        "acc",
        lambda answer, question: float(mme_answer(answer) == ("yes" if label_of(question) else "no")),
        lambda questions, answers, marks: pair_figures(questions, marks),
    ),
    # BLEU, ROUGE-L, METEOR and CIDEr over the captions of each picture; in Chinese after jieba has found the words
    "captions": Scorer("CIDEr"),
    "captions_zh": Scorer("CIDEr"),
    # points that a text model gives (`eval.judge`)
    "judge": Scorer("points by a judge"),
    "none": Scorer("answers only"),
}
