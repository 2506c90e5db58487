"""Questions about a scene, with the answer that the scene itself gives.

Every question has exactly one right answer, and the answers of a category are drawn evenly as far as the
scene allows, so that whoever does not see the picture can do little better than guess.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlm.demo.scenes import COLOURS, KINDS, PLACES, Scene, Shape

LOOKUPS = ("colour", "shape", "position")  # categories that ask for one trait of one shape
NUMBERS = ("zero", "one", "two", "three")
RELATIONS: dict[str, Callable[[Shape, Shape], bool]] = {
    "left of": lambda one, other: one.column < other.column,
    "right of": lambda one, other: one.column > other.column,
    "above": lambda one, other: one.row < other.row,
    "below": lambda one, other: one.row > other.row,
}


@dataclass(frozen=True)
class Question:
    """A question about a scene, with the kind of thing it asks for."""

    category: str
    text: str
    answer: str


def ask(scene: Scene, category: str, rng: random.Random) -> Question | None:
    """One question of the category, or None where the scene allows none (a relation needs two shapes)."""
    candidates = ASKERS[category](scene)
    if not candidates:
        return None
    answer = rng.choice(sorted(candidates))
    return Question(category, rng.choice(candidates[answer]), answer)


def ask_several(scene: Scene, count: int, rng: random.Random, categories: Sequence[str] = ()) -> list[Question]:
    """`count` different questions, spread over the categories (all, unless some are named)."""
    categories = categories or tuple(ASKERS)
    questions: list[Question] = []
    while len(questions) < count:
        for category in rng.sample(categories, len(categories)):
            question = ask(scene, category, rng)
            if question and question.text not in {asked.text for asked in questions} and len(questions) < count:
                questions.append(question)
    return questions


Candidates = dict[str, list[str]]  # answer → the questions it would answer


def ask_colour(scene: Scene) -> Candidates:
    """Ask what colour a shape has, by its place or its kind."""
    candidates: Candidates = {}
    for shape in scene.shapes:
        texts = candidates.setdefault(shape.colour, [])
        texts.append(f"What colour is the shape at the {PLACES[shape.place]}?")
        if _alone(scene, kind=shape.kind):
            texts.append(f"What colour is the {shape.kind}?")
    return candidates


def ask_shape(scene: Scene) -> Candidates:
    """Ask what shape there is, by its place or its colour."""
    candidates: Candidates = {}
    for shape in scene.shapes:
        texts = candidates.setdefault(shape.kind, [])
        texts.append(f"What shape is at the {PLACES[shape.place]}?")
        if _alone(scene, colour=shape.colour):
            texts.append(f"What shape is {shape.colour}?")
    return candidates


def ask_count(scene: Scene) -> Candidates:
    """Ask how many shapes there are, of all and of each kind and colour."""
    candidates: Candidates = {NUMBERS[len(scene.shapes)]: ["How many shapes are there?"]}
    for kind in KINDS:
        found = sum(shape.kind == kind for shape in scene.shapes)
        candidates.setdefault(NUMBERS[found], []).append(f"How many {_plural(kind)} are there?")
    for colour in COLOURS:
        found = sum(shape.colour == colour for shape in scene.shapes)
        candidates.setdefault(NUMBERS[found], []).append(f"How many {colour} shapes are there?")
    return candidates


def ask_position(scene: Scene) -> Candidates:
    """Ask where a shape is that is the only one of its description."""
    candidates: Candidates = {}
    for shape in scene.shapes:
        texts = candidates.setdefault(PLACES[shape.place], [])
        if _alone(scene, colour=shape.colour, kind=shape.kind):
            texts.append(f"Where is the {shape.colour} {shape.kind}?")
        if _alone(scene, kind=shape.kind):
            texts.append(f"Where is the {shape.kind}?")
    return {answer: texts for answer, texts in candidates.items() if texts}


def ask_relation(scene: Scene) -> Candidates:
    """Ask whether one shape lies in a direction from another."""
    candidates: Candidates = {}
    named = [shape for shape in scene.shapes if _alone(scene, colour=shape.colour, kind=shape.kind)]
    for one, other in ((one, other) for one in named for other in named if one is not other):
        for relation, holds in RELATIONS.items():
            text = f"Is the {one.colour} {one.kind} {relation} the {other.colour} {other.kind}?"
            candidates.setdefault("yes" if holds(one, other) else "no", []).append(text)
    return candidates


def ask_existence(scene: Scene) -> Candidates:
    """Whether there is such a shape; those that are missing differ in one trait from one that is there."""
    there = {(shape.colour, shape.kind) for shape in scene.shapes}
    near = {(colour, kind) for _, kind in there for colour in COLOURS}
    near |= {(colour, kind) for colour, _ in there for kind in KINDS}
    return {
        "yes": [f"Is there a {colour} {kind}?" for colour, kind in sorted(there)],
        "no": [f"Is there a {colour} {kind}?" for colour, kind in sorted(near - there)],
    }


ASKERS: dict[str, Callable[[Scene], Candidates]] = {
    "colour": ask_colour,
    "shape": ask_shape,
    "count": ask_count,
    "position": ask_position,
    "relation": ask_relation,
    "existence": ask_existence,
}


def _alone(scene: Scene, colour: str | None = None, kind: str | None = None) -> bool:
    """Whether exactly one shape of the scene has these traits."""
    return sum(colour in (None, shape.colour) and kind in (None, shape.kind) for shape in scene.shapes) == 1


def _plural(kind: str) -> str:
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"
