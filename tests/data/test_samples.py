import pickle

import pytest

from vlm.config import SourceConfig
from vlm.data.images import InFolder
from vlm.data.samples import Reject, Sample, Turn, asked, draw, images_of, rows_of, text_of, texts_of


def test_a_reject_survives_the_way_to_a_worker_process():
    reject = pickle.loads(pickle.dumps(Reject("format", "a list stands here")))
    assert (reject.code, reject.detail, str(reject)) == ("format", "a list stands here", "format: a list stands here")


def test_a_record_that_is_none_is_rejected_where_it_stands():
    def make(identity, record):
        return Sample(identity, "mine", (Turn("user", text_of(record, "text")),))

    rows = list(rows_of("mine", iter([("a", {"text": "x"}), ("b", 7), ("c", {}), ("d", {"text": "y"})]), make))
    assert [row.id for row in rows] == ["a", "b", "c", "d"]
    assert [getattr(row.sample, "code", None) for row in rows] == [None, "format", "format", None]


def test_the_picture_stands_before_the_question():
    assert asked("What?", "red") == (Turn("user", "<image>\nWhat?"), Turn("assistant", "red"))
    assert asked("What?", "red", shows_picture=False)[0] == Turn("user", "What?")


@pytest.mark.parametrize("record", [{}, {"x": None}, {"x": 3}, {"x": [1]}, {"x": []}, {"x": [["a"]]}])
def test_what_is_no_text_is_rejected(record):
    for read in (text_of, texts_of):
        with pytest.raises(Reject, match="format"):
            read(record, "x")


def test_pictures_need_a_place():
    assert images_of(SourceConfig(path="a", images="b"))("c.jpg") == InFolder("b", "c.jpg")
    with pytest.raises(Reject, match="no_image_folder"):
        images_of(SourceConfig(path="a"))("c.jpg")


def test_a_draw_is_even_and_goes_by_seed_and_name():
    drawn = [draw(0, str(n)) / 2**64 for n in range(1000)]
    assert 0.45 < sum(drawn) / len(drawn) < 0.55
    assert draw(0, "a") == draw(0, "a") != draw(1, "a")
    assert draw(0, "half \ud83d") != draw(0, "a")
