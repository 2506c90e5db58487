import itertools
import json

import pytest

from vlm.config import SourceConfig
from vlm.data.images import InFolder
from vlm.data.samples import Reject, Sample, Turn
from vlm.data.sources import read
from vlm.errors import Unusable

TURNS = [{"from": "human", "value": "Is it big?"}, {"from": "gpt", "value": "是的 🙂"}]
RECORDS = [{"id": number, "conversations": TURNS, "score": 0.5, "question_id": f"q{number}"} for number in range(3)]


@pytest.fixture
def rows_of(tmp_path):
    """Return a function that reads a text as a corpus; keyword arguments are source settings."""

    def read_text(text: str | bytes, **settings) -> list:
        path = tmp_path / "corpus.json"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return list(read(SourceConfig(name="mine", path=str(path), **settings)))

    return read_text


def reject_of(rows: list) -> str:
    (row,) = rows
    assert isinstance(row.sample, Reject)
    return row.sample.code


FORMATS = {
    "list": json.dumps(RECORDS),
    "indented": "\n " + json.dumps(RECORDS, indent=2, ensure_ascii=False),
    "lines": "\n".join(map(json.dumps, RECORDS)),
    "lines_with_gaps": "\n\n".join(map(json.dumps, RECORDS)) + "\n\n",
}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "bom"])
@pytest.mark.parametrize("text", FORMATS.values(), ids=FORMATS)
def test_lists_and_lines_give_the_same_rows(rows_of, text, mark):
    rows = rows_of(mark + text)
    assert [row.id for row in rows] == ["0", "1", "2"]
    assert rows[1].source == "mine"
    assert rows[1].sample == Sample(
        "1",
        "mine",
        (Turn("user", "Is it big?"), Turn("assistant", "是的 🙂")),
        extra={"score": 0.5, "question_id": "q1"},
    )


def test_ids_stay_strings_with_their_zeros(rows_of):
    ids = ["000000442786", 442786, "GCC_1", 1.5]
    rows = rows_of(json.dumps([{"id": identity, "conversations": TURNS} for identity in ids]))
    assert [row.id for row in rows] == [row.sample.id for row in rows] == ["000000442786", "442786", "GCC_1", "1.5"]


def test_a_row_without_an_id_is_named_by_its_place(rows_of):
    rows = rows_of(json.dumps([{"conversations": TURNS}, {"conversations": TURNS}, 7]))
    assert [row.id for row in rows] == ["row0", "row1", "row2"]


def test_pictures_are_found_in_the_folder_in_their_order(rows_of, tmp_path):
    records = [{"conversations": TURNS, "image": "a/1.jpg"}, {"conversations": TURNS, "image": ["b.jpg", "a.jpg"]}]
    one, two = rows_of(json.dumps(records), images=str(tmp_path))
    assert one.sample.images == (InFolder(str(tmp_path), "a/1.jpg"),)
    assert two.sample.images == (InFolder(str(tmp_path), "b.jpg"), InFolder(str(tmp_path), "a.jpg"))


@pytest.mark.parametrize("image", ["", None, []])
def test_an_empty_picture_name_is_no_picture(rows_of, image):
    (row,) = rows_of(json.dumps([{"conversations": TURNS, "image": image}]))
    assert row.sample.images == ()


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ([1, 2], "format"),
        ("text", "format"),
        (None, "format"),
        ({"id": "1"}, "format"),
        ({"conversations": {"from": "human", "value": "x"}}, "format"),
        ({"conversations": ["x"]}, "format"),
        ({"conversations": [["human", "x"]]}, "format"),
        ({"conversations": [{"from": "human"}]}, "format"),
        ({"conversations": [{"from": "human", "value": 3}]}, "format"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "roles"),
        ({"conversations": [{"value": "x"}]}, "roles"),
        ({"conversations": TURNS, "image": 5}, "format"),
        ({"conversations": TURNS, "image": {"path": "a.jpg"}}, "format"),
        ({"conversations": TURNS, "image": ["a.jpg", 5]}, "format"),
    ],
)
def test_a_record_of_another_shape_is_rejected_in_its_place(rows_of, tmp_path, record, code):
    good = {"id": "good", "conversations": TURNS}
    before, *bad, after = rows_of(json.dumps([good, record, good]), images=str(tmp_path))
    assert reject_of(bad) == code
    assert isinstance(before.sample, Sample)
    assert isinstance(after.sample, Sample)


def test_a_picture_without_a_folder_is_rejected(rows_of):
    assert reject_of(rows_of(json.dumps([{"conversations": TURNS, "image": "a.jpg"}]))) == "no_image_folder"


@pytest.mark.parametrize(
    "text",
    [
        FORMATS["list"][:-10],
        FORMATS["list"][:-1],
        FORMATS["list"] + "x",
        FORMATS["lines"][:-10],
        FORMATS["lines"] + "\nnone",
        b"[" + json.dumps(RECORDS[0]).encode() + b', "\xff"]',
        b'{"id": "\xff"}',
        b"\x00\x01\x02",
    ],
)
def test_text_that_is_no_whole_json_is_named_in_one_line(rows_of, text):
    with pytest.raises(Unusable, match="corpus.json") as fault:
        rows_of(text)
    assert "\n" not in str(fault.value)


def test_rows_before_a_fault_are_read_and_its_line_is_named(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text(FORMATS["lines"] + "\n{")
    rows = read(SourceConfig(name="mine", path=str(path)))
    assert len(list(itertools.islice(rows, 3))) == 3
    with pytest.raises(Unusable, match="line 4"):
        next(rows)


def test_messages_and_images_are_read_like_conversations(rows_of, tmp_path):
    messages = [{"role": "user", "content": "<image>他们是谁?"}, {"role": "assistant", "content": "是凯恩。"}]
    (row,) = rows_of(json.dumps([{"messages": messages, "images": ["a/1.jpg", "b.jpg"]}]), images=str(tmp_path))
    assert row.sample.turns == (Turn("user", "<image>他们是谁?"), Turn("assistant", "是凯恩。"))
    assert [image.name for image in row.sample.images] == ["a/1.jpg", "b.jpg"]
    assert row.sample.extra == {}
