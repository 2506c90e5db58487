import base64
import io
from collections import Counter

import pytest
from PIL import Image

from vlm.eval.gallery import card, choose, commonest_mistakes, thumbnail
from vlm.eval.results import Answered


@pytest.mark.parametrize(
    ("right", "wrong", "count", "shown_wrong"), [(90, 10, 20, 10), (10, 90, 20, 10), (5, 95, 20, 15), (99, 1, 20, 1)]
)
def test_half_of_the_gallery_is_wrong_as_far_as_there_are_enough(make_question, right, wrong, count, shown_wrong):
    all_answers = [Answered(make_question(i), "no", float(i < right)) for i in range(right + wrong)]
    chosen = choose(all_answers, count, 0)
    assert len(chosen) == len({one.question.id for one in chosen}) == count
    assert sum(not one.is_right for one in chosen) == shown_wrong


def test_right_and_wrong_ones_are_mixed(make_question):
    all_answers = [Answered(make_question(i), "no", float(i < 900)) for i in range(1000)]
    assert 10 < sum(one.is_right for one in choose(all_answers, 80, 0)[:40]) < 30


def test_every_category_is_shown_alike(make_question):
    all_answers = [Answered(make_question(i, category="rare" if i < 10 else "often"), "no", 0.0) for i in range(1000)]
    assert Counter(one.question.category for one in choose(all_answers, 20, 0)) == {"rare": 10, "often": 10}


def test_a_gallery_larger_than_all_answers_shows_each_once(make_question):
    all_answers = [Answered(make_question(i), "no", float(i % 2 == 0)) for i in range(5)]
    assert sorted(one.question.id for one in choose(all_answers, 50, 0)) == [f"q{i}" for i in range(5)]
    assert choose(all_answers, 0, 0) == []


def test_the_choice_depends_on_the_seed_alone(make_question):
    all_answers = [Answered(make_question(i), "no", float(i % 2 == 0)) for i in range(50)]
    assert choose(all_answers, 10, 0) == choose(all_answers, 10, 0) != choose(all_answers, 10, 1)


def test_mistakes_are_counted_by_reference_and_answer(make_question):
    kinds = [("yes", "no", False), ("two", "one", False), ("two", "one", False), ("yes", "yes", True)]
    all_answers = [
        Answered(make_question(i, reference=ref), said, float(ok)) for i, (ref, said, ok) in enumerate(kinds)
    ]
    assert commonest_mistakes(all_answers, 5) == [("two", "one", 2), ("yes", "no", 1)]


def test_a_thumbnail_is_the_stored_picture_within_its_limit(held_out):
    element = thumbnail(held_out, (0, 0), 20)
    data = element.split("base64,")[1].split('"')[0]
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert max(picture.size) == 20


def test_a_card_shows_all_pictures_of_its_question(answered, held_out):
    shown = {len(one.question.pictures): card(one, "colour", held_out) for one in answered}
    assert [shown[pictures].count("<img") for pictures in (0, 1, 2)] == [0, 2, 4]  # its own and the shuffled ones
    assert "no picture" in shown[0] and "blind" not in shown[0]
