"""The gallery of the report: some answers with their pictures, right and wrong ones mixed."""

import base64
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from html import escape

from PIL import Image

from vlm.data.pixels import to_rgb
from vlm.eval.results import Answered
from vlm.eval.tasks import Pictures, Place

SHOWN_PIXELS = 288  # longest edge of a picture in a card
SMALL_PIXELS = 96  # and of one beside an answer


def choose(answered: Sequence[Answered], count: int, seed: int) -> list[Answered]:
    """Return up to `count` answers, half of them wrong as far as there are so many, from all categories alike."""
    wrong = _spread([one for one in answered if not one.is_right], seed)
    right = _spread([one for one in answered if one.is_right], seed)
    wrong = wrong[: max(count - count // 2, count - len(right))]
    return sorted(wrong + right[: count - len(wrong)], key=lambda one: _draw(one, f"{seed} shown"))


def tools(categories: Sequence[str]) -> str:
    """Return the filter of the gallery; it stays hidden where scripts do not run."""
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in categories)
    return (
        '<div class="tools" hidden><div class="choice">'
        '<button value="" aria-pressed="true">All</button><button value="right" aria-pressed="false">Right</button>'
        '<button value="wrong" aria-pressed="false">Wrong</button></div>'
        f'<select aria-label="Category"><option value="">every category</option>{options}</select>'
        '<input type="search" placeholder="Search" aria-label="Search questions and answers">'
        "<output></output></div>"
    )


def card(one: Answered, category: str, split: Pictures) -> str:
    """Return an answer as a card: picture, question, reference, answer, answer with another picture."""
    verdict = "right" if one.is_right else "wrong"
    shown = "".join(thumbnail(split, place, SHOWN_PIXELS) for place in one.question.own) or "<p>no picture</p>"
    lines = [("expected", "", escape(one.question.reference)), ("answered", ' class="given"', _said(one.answer))]
    for condition, unseen in one.blind.items() if one.question.pictures else ():
        small = "".join(thumbnail(split, place, SMALL_PIXELS) for place in unseen.pictures)
        lines.append((condition, "", small + _said(unseen.answer)))
    said = "".join(f"<dt>{term}</dt><dd{look}>{text}</dd>" for term, look, text in lines)
    return (
        f'<article class="card is-{verdict}" data-verdict="{verdict}" data-category="{escape(category)}">'
        f'<div class="shown">{shown}</div><div class="words"><div class="chips"><span>{escape(category)}</span>'
        f'<span class="verdict">{verdict}</span></div><p class="asked">{escape(one.question.text)}</p>'
        f"<dl>{said}</dl></div></article>"
    )


def thumbnail(split: Pictures, place: Place, pixels: int) -> str:
    """Return a stored picture as an image element that holds its own data, at most `pixels` wide and high."""
    sample, number = place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size warning: stage 02 has accepted the picture
        picture = to_rgb(Image.open(io.BytesIO(split.read(sample).pictures[number])))
    picture.thumbnail((pixels, pixels))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


def commonest_mistakes(answered: Sequence[Answered], count: int) -> list[tuple[str, str, int]]:
    """Return reference, answer and how often that answer was given, the most frequent first."""
    mistakes = Counter((one.question.reference, one.answer) for one in answered if not one.is_right)
    ordered = sorted(mistakes.items(), key=lambda item: (-item[1], item[0]))
    return [(reference, answer, times) for (reference, answer), times in ordered[:count]]


def _said(answer: str) -> str:
    return escape(answer) if answer else "<em>nothing</em>"


def _spread(answered: Sequence[Answered], seed: int) -> list[Answered]:
    """Order at random, but so that every beginning holds all categories alike."""
    taken: Counter[str] = Counter()
    placed = []
    for one in sorted(answered, key=lambda one: _draw(one, seed)):
        placed.append((taken[one.question.category], one))
        taken[one.question.category] += 1
    return [one for _, one in sorted(placed, key=lambda pair: pair[0])]


def _draw(one: Answered, seed: int | str) -> str:
    return hashlib.sha256(f"{seed}:{one.question.id}".encode()).hexdigest()
