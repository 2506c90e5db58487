"""VQA accuracy: an answer is worth as much as people gave it, in two dialects that differ by some points.

official  of the VQA challenge: answers are normalised only where the people's answers differ
m4c       of TextVQA, LLaVA and lmms-eval: they are always normalised, and commas, question marks and 's first

Source of the formula: Antol et al., VQA: Visual Question Answering, 2015. Of n people each is left out once, and the
others decide: min(matches / 3, 1); the mean over those n is the score. With ten people 1, 2, 3 matches give 30, 60, 90 %.
"""

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = {"a", "an", "the"}
FULL_STOPS = 32  # only so many are removed: the challenge's code passes a flag of that value where a count is expected
# The challenge writes these with their apostrophes; it knows each with one of them left out.
CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""
REPAIRED = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTIONS.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the challenge's table has this one the wrong way round


def official(answer: str, references: Sequence[str]) -> float:
    """Return the accuracy in [0, 1] as the VQA challenge counts it; at least one reference."""
    answer, references = _one_line(answer), [_one_line(reference) for reference in references]
    if len(set(references)) > 1:
        answer, references = _normalised(answer), [_normalised(reference) for reference in references]
    return _accuracy(answer, references)


def m4c(answer: str, references: Sequence[str]) -> float:
    """Return the accuracy in [0, 1] as TextVQA's evaluator counts it; at least one reference."""
    return _accuracy(_m4c_form(answer), [_m4c_form(reference) for reference in references])


def _accuracy(answer: str, references: Sequence[str]) -> float:
    matches, people = sum(answer == reference for reference in references), len(references)
    without_a_match = min(1.0, (matches - 1) / 3)  # what is left when one who agreed is left out
    without_another = min(1.0, matches / 3)
    return (matches * without_a_match + (people - matches) * without_another) / people


def _m4c_form(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _normalised(_one_line(text))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalised(text: str) -> str:
    """Return the words in lower case, without punctuation and articles, numbers up to ten as digits."""
    words = [NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """Drop a mark that stands beside a space, or any mark if a comma stands between digits; else it becomes a space."""
    has_grouped_digits = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or has_grouped_digits else " ")
    return re.sub(r"\.(?!\d)", "", cleaned, count=FULL_STOPS)
