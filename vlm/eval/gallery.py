"""The gallery of a page: answers with their pictures, which the page's script filters and shows as one scrolls.

Each picture is stored once, however many questions are about it, and smaller where there are many.
"""

import base64
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image
from tqdm import tqdm

from vlm.data.pictures import to_rgb
from vlm.eval.page import data
from vlm.eval.question import Place
from vlm.eval.results import Answered
from vlm.eval.tasks import Pictures

SIZES = ((300, 320), (1200, 224), (None, 160))  # up to so many pictures: longest edge in pixels


@dataclass(frozen=True)
class Said:
    """One answer of a card."""

    label: str
    answer: str
    mark: float | None
    score: str = ""  # the mark in words, where right or wrong does not say it
    pictures: tuple[Place, ...] = ()  # what was shown in place of the question's own


@dataclass(frozen=True)
class Card:
    """A question with its answers, as the gallery shows it."""

    id: str
    category: str
    question: str
    references: Sequence[str]
    pictures: tuple[Place, ...]
    said: Sequence[Said]
    verdict: str  # what the buttons filter by
    verdict_text: str
    split: Pictures | None  # where the pictures are; None if they are there no more
    others: Mapping[str, str] = field(default_factory=dict)  # by name of a choice: what it filters by
    is_changed: bool = False  # since another run, which the button "changed" filters by


def gallery(
    cards: Sequence[Card], verdicts: Mapping[str, str], choices: Mapping[str, tuple[str, Mapping[str, str]]]
) -> str:
    """Return the gallery: its filter, the place for the cards, and their data.

    `verdicts` are the buttons, text by value; `choices` are lists to choose from: by name, what it says while nothing
    is chosen, and text by value.
    """
    thumbnails = _Thumbnails(cards)
    records = [_record(one, thumbnails) for one in cards]
    return (
        _tools(verdicts, choices, sorted({one.category for one in cards}))
        + '<noscript><p class="note">The answers are shown by a script, and scripts are off.</p></noscript>\n'
        + '<div class="gallery"></div><div id="end"></div>\n'
        + data("cards", records)
        + "\n"
        + data("pictures", thumbnails.all())
    )


def choose(answered: Sequence[Answered], count: int, seed: int) -> list[Answered]:
    """Return up to `count` answers, half of them wrong as far as there are so many, from all categories alike."""
    wrong = _spread([one for one in answered if not one.is_right], seed)
    right = _spread([one for one in answered if one.is_right], seed)
    wrong = wrong[: max(count - count // 2, count - len(right))]
    return sorted(wrong + right[: count - len(wrong)], key=lambda one: _draw(one, f"{seed} shown"))


def thumbnail(split: Pictures, place: Place, pixels: int) -> str:
    """Return a stored picture as an image element that holds its own data, at most `pixels` wide and high."""
    return f'<img alt="" loading="lazy" src="{_address(split, place, pixels)}">'


def commonest_mistakes(answered: Sequence[Answered], count: int) -> list[tuple[str, str, int]]:
    """Return reference, answer and how often that answer was given, the most frequent first."""
    mistakes = Counter((one.question.reference, one.answer) for one in answered if one.is_right is False)
    ordered = sorted(mistakes.items(), key=lambda item: (-item[1], item[0]))
    return [(reference, answer, times) for (reference, answer), times in ordered[:count]]


def counted(references: Sequence[str]) -> list[str]:
    """Return different references, each with how often it was given, the most frequent first."""
    return [text if times == 1 else f"{text} ×{times}" for text, times in Counter(references).most_common()]


def _tools(
    verdicts: Mapping[str, str], choices: Mapping[str, tuple[str, Mapping[str, str]]], categories: Sequence[str]
) -> str:
    """Return the filter; it stays hidden where scripts do not run."""
    buttons = "".join(
        f'<button value="{escape(value)}" aria-pressed="{str(not value).lower()}">{escape(text)}</button>'
        for value, text in {"": "All", **verdicts}.items()
    )
    lists = {"category": ("every category", {name: name for name in categories})} if len(categories) > 1 else {}
    selects = "".join(
        f'<select name="{name}" aria-label="{name}"><option value="">{escape(nothing)}</option>'
        + "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
        + "</select>"
        for name, (nothing, options) in {**lists, **choices}.items()
    )
    return (
        f'<div class="tools" id="answers" hidden><div class="choice">{buttons}</div>{selects}'
        '<input type="search" placeholder="Search" aria-label="Search questions and answers"><output></output></div>\n'
    )


def _record(one: Card, thumbnails: "_Thumbnails") -> dict[str, object]:
    return {
        "id": one.id,
        "category": one.category,
        "question": one.question,
        "references": list(one.references),
        "pictures": thumbnails.of(one, one.pictures),
        "said": [
            {
                "label": said.label,
                "answer": said.answer,
                "good": None if said.mark is None else int(said.mark >= 0.5),
                "score": said.score,
                "pictures": thumbnails.of(one, said.pictures),
            }
            for said in one.said
        ],
        "verdict": one.verdict,
        "verdict_text": one.verdict_text,
        "changed": one.is_changed,
        **one.others,
    }


class _Thumbnails:
    """Numbers the pictures of cards, and makes each of them small; equal ones are stored once."""

    def __init__(self, cards: Sequence[Card]) -> None:
        self._numbers: dict[tuple[int, Place], int] = {}
        first: dict[str, tuple[Pictures, Place]] = {}  # by digest, in the order of the numbers
        order: dict[str, int] = {}
        for one in cards:
            for place in [*one.pictures, *(place for said in one.said for place in said.pictures)]:
                key = id(one.split), place
                if one.split is None or key in self._numbers:
                    continue
                digest = hashlib.sha256(_read(one.split, place)).hexdigest()
                self._numbers[key] = order.setdefault(digest, len(order))
                first.setdefault(digest, (one.split, place))
        pixels = next(size for most, size in SIZES if most is None or len(first) <= most)
        progress = tqdm(first.values(), desc="report", unit=" pictures", leave=False, disable=len(first) < 1000)
        self._addresses = [_address(split, place, pixels) for split, place in progress]

    def of(self, one: Card, places: Sequence[Place]) -> list[int]:
        """Return the numbers of a card's pictures; none where they are there no more."""
        return [] if one.split is None else [self._numbers[id(one.split), place] for place in places]

    def all(self) -> list[str]:
        """Return all pictures as addresses that hold their own data."""
        return self._addresses


def _read(split: Pictures, place: Place) -> bytes:
    sample, number = place
    return split.read(sample).pictures[number]


def _address(split: Pictures, place: Place, pixels: int) -> str:
    """Return a stored picture as a data address, WebP, at most `pixels` wide and high."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size warning: stage 02 has accepted the picture
        picture = Image.open(io.BytesIO(_read(split, place)))
        picture.draft("RGB", (2 * pixels, 2 * pixels))  # a JPEG is decoded no larger than need be
        small = to_rgb(picture)
    small.thumbnail((pixels, pixels))
    stored = io.BytesIO()
    small.save(stored, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"


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
