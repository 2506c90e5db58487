import base64
import io
import json
from collections import Counter

import pytest
from PIL import Image, ImageStat

from vlm.eval.gallery import Card, Said, choose, commonest_mistakes, counted, gallery, thumbnail
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
    picture = opened(thumbnail(held_out, (0, 0), 20).split('"')[-2])
    assert max(picture.size) == 20


def opened(address):
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,"))))


def stored(html, name):
    return json.loads(html.split(f'id="{name}">')[1].split("</script>")[0])


def card(number, split, pictures, said=()):
    return Card(f"q{number}", "colour", "Which?", ["red"], pictures, said, "wrong", "wrong", split, {"look": "needs"})


def test_each_picture_is_stored_once_and_cards_name_it_by_number(held_out):
    said = [Said("answered", "", 0.2, "20 %"), Said("shuffled", "blue", None, "", ((5, 0),))]
    html = gallery([card(0, held_out, ((0, 0),)), card(1, held_out, ((0, 0),), said)], {"wrong": "Wrong"}, {})
    first, second = stored(html, "cards")
    pictures = stored(html, "pictures")
    assert first["pictures"] == second["pictures"] == [0] and len(pictures) == 2
    assert second["said"][1]["pictures"] == [1] and [said["good"] for said in second["said"]] == [0, None]
    for (sample, number), address in zip(((0, 0), (5, 0)), pictures, strict=True):
        whole = Image.open(io.BytesIO(held_out.read(sample).pictures[number])).convert("RGB")
        assert opened(address).size == whole.size
        shown = ImageStat.Stat(opened(address).convert("RGB")).mean
        assert shown == pytest.approx(ImageStat.Stat(whole).mean, abs=8)


def test_equal_pictures_of_other_samples_are_stored_once(held_out, answered):
    digests = {name for one in answered for name in one.question.pictures}
    html = gallery([card(i, held_out, one.question.own) for i, one in enumerate(answered)], {}, {})
    assert len(stored(html, "pictures")) == len(digests) < sum(len(one.question.own) for one in answered)


def test_pictures_that_are_gone_leave_their_cards():
    assert stored(gallery([card(0, None, ((0, 0),))], {}, {}), "cards")[0]["pictures"] == []


def test_references_are_counted():
    assert counted(["two", "2", "two"]) == ["two ×2", "2"]
