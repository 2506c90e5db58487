"""Yes/no questions: POPE's figures, and MME's for pairs of questions about one picture.

Source: Li et al., Evaluating Object Hallucination in Large Vision-Language Models, 2023; Fu et al., MME, 2023.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.errors import Unusable

DENIALS = {"No", "no", "not"}


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
    """Read an answer as POPE does: no if "no" or "not" is a word of its first sentence, else yes."""
    return not DENIALS & set(answer.split(".")[0].replace(",", "").split())


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


def mme_answer(answer: str) -> str | None:
    """Return "yes" or "no" if the answer begins with it (within its first four letters), else None."""
    beginning = answer.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), None)


def mme(is_right: Sequence[bool], pictures: Sequence[str]) -> tuple[float, float]:
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
