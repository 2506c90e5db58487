"""Questions: right answers, one for each question, and balanced."""

import random
from collections import Counter

import pytest

from vlm.demo.questions import ASKERS, ask, ask_several
from vlm.demo.scenes import imagine

from .conftest import scene_of


@pytest.mark.parametrize(
    ("category", "question", "answer"),
    [
        ("colour", "What colour is the circle?", "red"),
        ("shape", "What shape is at the bottom right?", "cross"),
        ("count", "How many crosses are there?", "one"),
        ("count", "How many shapes are there?", "two"),
        ("position", "Where is the blue cross?", "bottom right"),
        ("relation", "Is the red circle above the blue cross?", "yes"),
        ("relation", "Is the red circle right of the blue cross?", "no"),
        ("existence", "Is there a red circle?", "yes"),
        ("existence", "Is there a blue circle?", "no"),
    ],
)
def test_answers_agree_with_the_scene(category: str, question: str, answer: str) -> None:
    assert question in ASKERS[category](scene_of(("red", "circle", 0), ("blue", "cross", 3)))[answer]


def test_no_question_has_two_answers() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = imagine(rng, seed=0)
        for candidates in (asker(scene) for asker in ASKERS.values()):
            texts = Counter(text for answer in candidates.values() for text in set(answer))
            assert all(count == 1 for count in texts.values())


def test_questions_that_would_be_ambiguous_are_not_asked() -> None:
    twins = scene_of(("red", "circle", 0), ("blue", "circle", 1))
    asked = [text for texts in ASKERS["colour"](twins).values() for text in texts]
    assert "What colour is the circle?" not in asked


def test_one_shape_allows_no_relation_but_still_four_questions() -> None:
    scene = scene_of(("red", "circle", 0))
    assert ask(scene, "relation", random.Random(0)) is None
    questions = ask_several(scene, 4, random.Random(0))
    assert len({asked.text for asked in questions}) == 4


def test_answers_are_balanced() -> None:
    rng = random.Random(0)
    asked = [ask(imagine(rng, 0), category, rng) for _ in range(400) for category in ("existence", "relation")]
    share = sum(each.answer == "yes" for each in asked if each) / sum(each is not None for each in asked)
    assert 0.42 < share < 0.58
