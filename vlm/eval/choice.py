"""Multiple choice (A-OKVQA, ScienceQA): which choice an answer names.

The forms are those that LLaVA's ScienceQA evaluation reads: "B", "B. text" and a text that says once "The answer is B."
"""

import re
import string
from collections.abc import Sequence

from vlm.eval.question import Question

LETTERS = string.ascii_uppercase
SAYS = re.compile(r"The answer is ([A-Z]).")  # one character of any kind must follow


def parsed_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Return the number of the choice that is named; None if none is, or one that is not offered."""
    answer = answer.strip()
    said = SAYS.findall(answer)
    if len(answer) == 1:
        letter = answer
    elif answer[:1] in LETTERS and answer[1:3] == ". ":
        letter = answer[0]
    elif len(said) == 1:
        letter = said[0]
    else:
        return None
    number = LETTERS.find(letter)
    return number if 0 <= number < len(choices) else None


def choice_figures(
    questions: Sequence[Question], answers: Sequence[str], marks: Sequence[float]
) -> dict[str, dict[str, float | None]]:
    """Return accuracy and the share of answers that name no choice, percent: of all, with and without a picture."""
    rows = {
        "all": list(range(len(questions))),
        "with picture": [i for i, question in enumerate(questions) if question.pictures],
        "without picture": [i for i, question in enumerate(questions) if not question.pictures],
    }
    figures: dict[str, dict[str, float | None]] = {}
    for name, chosen in rows.items():
        if chosen:
            unparsed = [parsed_choice(answers[i], questions[i].extra["choices"]) is None for i in chosen]
            right = sum(marks[i] for i in chosen)
            figures[name] = {"n": len(chosen), "accuracy": 100 * right / len(chosen)}
            figures[name]["unparsed"] = 100 * sum(unparsed) / len(chosen)
    return figures
