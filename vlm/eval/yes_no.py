"""Yes/no questions: POPE's figures, and MME's for pairs of questions about one picture.

Source: Li et al., Evaluating Object Hallucination in Large Vision-Language Models, 2023; Fu et al., MME, 2023.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

from vlm.errors import Unusable
from vlm.eval.question import Question

DENIALS = {"No", "no", "not"}
COGNITION = {"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"}
PERCEPTION = {"existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"}


@dataclass(frozen=True)
class YesNo:
    """Figures of yes/no answers, percent; None where nothing is to be divided by. "yes" is what is looked for."""

    n: int
    accuracy: float
    precision: float | None  # None if the model never says yes
    recall: float | None  # None if nothing is there to be found
    f1: float | None  # None if neither a label nor an answer is yes
    yes_share: float


def said_yes(answer: str) -> bool:
    """Read an answer as POPE does: no if "no" or "not" stands between spaces in its first sentence, else yes."""
    return not DENIALS & set(answer.split(".")[0].replace(",", "").split(" "))  # a line break is no space to POPE


def pope(answers: Sequence[bool], labels: Sequence[bool]) -> YesNo:
    """Return POPE's figures of answers and labels in one order, True for yes.

    Raises Unusable if there is none.
    """
    if not labels:
        raise Unusable("no yes/no question is there to be scored")
    pairs = list(zip(answers, labels, strict=True))
    found, n = sum(answer and label for answer, label in pairs), len(pairs)
    said, there = sum(answers), sum(labels)
    return YesNo(
        n=n,
        accuracy=100 * sum(answer == label for answer, label in pairs) / n,
        precision=100 * found / said if said else None,
        recall=100 * found / there if there else None,
        f1=200 * found / (said + there) if said + there else None,
        yes_share=100 * said / n,
    )


def label_of(question: Question) -> bool:
    """Return whether yes is the right answer.

    Raises Unusable if the reference is neither yes nor no.
    """
    label = question.reference.strip().removesuffix(".").casefold()
    if label not in {"yes", "no"}:
        raise Unusable(f"question {question.id}: its reference is {question.reference!r}, not yes or no")
    return label == "yes"


def yes_no_figures(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return POPE's figures of all questions and of each category; answers are in the order of the questions."""
    return {
        name: asdict(pope([said_yes(answers[i]) for i in chosen], [label_of(questions[i]) for i in chosen]))
        for name, chosen in _rows(questions).items()
    }


def mme_answer(answer: str) -> str | None:
    """Return "yes" or "no" if the answer begins with it (within its first four letters), else None."""
    beginning = answer.lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), None)


def mme(is_right: Sequence[bool], pictures: Sequence[Hashable]) -> tuple[float, float]:
    """Return acc, percent of questions answered right, and acc+, percent of pictures with every question right.

    Raises Unusable if there is none, or a picture has not exactly two questions.
    """
    if not is_right:
        raise Unusable("no yes/no question is there to be scored")
    pairs = defaultdict(list)
    for right, picture in zip(is_right, pictures, strict=True):
        pairs[picture].append(right)
    for picture, marks in pairs.items():
        if len(marks) != 2:
            raise Unusable(f"the picture {picture} has {len(marks)} questions; MME asks two of each")
    return 100 * sum(is_right) / len(is_right), 100 * sum(map(all, pairs.values())) / len(pairs)


def pair_figures(questions: Sequence[Question], marks: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """Return acc, acc+ and their sum, MME's score, of all questions and of each category.

    The pictures of MME's ten kinds of perception and four of cognition have rows of their own, with the sum of their
    categories' scores. Two questions are a pair if they are of one category and about one picture.
    """
    figures: dict[str, dict[str, float | None]] = {}
    for name, chosen in _rows(questions).items():
        pairs = [_pair(questions[i]) for i in chosen]
        acc, both = mme([marks[i] >= 1 for i in chosen], pairs)
        figures[name] = {"n": len(chosen), "acc": acc, "acc+": both, "score": acc + both}
    for name, kinds in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if kinds <= figures.keys():
            figures[name] = {"score": sum(figures[kind]["score"] or 0.0 for kind in kinds)}
    return figures


def _pair(question: Question) -> str:
    """Return what both questions of a pair share: category, and the picture's name or else its bytes."""
    return f"{question.category}/{question.extra.get('image') or '+'.join(question.pictures)}"


def _rows(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Return the numbers of all questions, and of each category's if there are several."""
    rows: dict[str, list[int]] = {"all": list(range(len(questions)))}
    for number, question in enumerate(questions):
        if question.category != "all":
            rows.setdefault(question.category, []).append(number)
    return rows
