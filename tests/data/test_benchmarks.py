import json

import pytest

from vlm.config import SourceConfig
from vlm.data.samples import Reject
from vlm.data.sources import read

TEN = ["yes"] * 3 + ["no"] * 7


@pytest.fixture
def rows(tmp_path):
    """Write a file and read it."""

    def of(format_, content, name="file.json", **more):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        source = SourceConfig(path=str(tmp_path / name), format=format_, images=str(tmp_path), **more)
        return [row.sample for row in read(source)]

    return of


def test_textvqa_keeps_ten_answers_and_teaches_the_most_frequent(rows):
    record = {"question_id": 7, "image_id": "abc", "question": "What?", "answers": TEN}
    (sample,) = rows("textvqa", {"data": [record]})
    assert sample.images[0].name == "abc.jpg" and sample.turns[1].text == "no"
    assert sample.extra == {"question_id": "7", "answers": TEN}
    assert sample.turns[0].text == "<image>\nWhat?\nAnswer the question using a single word or phrase."


def test_vizwiz_knows_a_question_by_its_picture(rows):
    record = {
        "image": "v.jpg",
        "question": "What?",
        "answers": [{"answer": one} for one in TEN],
        "answer_type": "other",
    }
    good, bad = rows("vizwiz", [record, record | {"answers": "yes"}])
    assert (good.id, good.extra["category"], good.extra["answers"]) == ("v.jpg", "other", TEN)
    assert "Unanswerable" in good.turns[0].text
    assert isinstance(bad, Reject) and bad.code == "format"


def test_gqa_has_one_answer_and_the_kind_of_question(rows):
    record = {"imageId": "n1", "question": "Is it?", "answer": "no", "types": {"structural": "verify"}}
    (sample,) = rows("gqa", {"201": record})
    assert (sample.id, sample.extra, sample.images[0].name) == (
        "201",
        {"question_id": "201", "category": "verify"},
        "n1.jpg",
    )


def test_mme_s_lines_are_pairs_of_a_category(rows):
    text = "a.jpg\tIs it? Please answer yes or no.\tYes\nb.jpg\tBroken\na.jpg\tIs it not?\tNo\n"
    first, broken, second = rows("mme", text, "count.txt")
    assert [one.turns[1].text for one in (first, second)] == ["Yes", "No"]
    assert first.extra == {"question_id": "0", "category": "count", "image": "a.jpg"}
    assert first.turns[0].text == "<image>\nIs it? Please answer yes or no."
    assert isinstance(broken, Reject)


def test_questions_may_lack_an_answer_or_a_picture_or_have_two(rows):
    lines = [
        {"question_id": 1, "image": "a.jpg", "text": "Describe.", "category": "detail"},
        {"question_id": 2, "question": "Why?", "answers": ["b", "a", "a"]},
        {"question_id": 3, "image": ["a.jpg", "b.jpg"], "text": "Which?", "answer": "b"},
    ]
    alone, bare, two = rows("questions", "\n".join(map(json.dumps, lines)))
    assert (alone.turns[1].text, alone.extra["category"]) == ("", "detail")
    assert (bare.turns[0].text, bare.turns[1].text, bare.images) == ("Why?", "a", ())
    assert two.turns[0].text == "<image>\n<image>\nWhich?" and len(two.images) == 2
