"""Multiple choice (A-OKVQA, ScienceQA): which choice an answer names.

The forms are those that LLaVA's ScienceQA evaluation reads: "B", "B. text" and a text that says once "The answer is B."
"""

import re
import string
from collections.abc import Sequence

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
