import pickle

import pytest

from vlm.config import SourceConfig
from vlm.data.samples import Turn
from vlm.data.sources import read
from vlm.errors import Unusable

pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {"images": [{"bytes": b"a", "path": None}], "texts": [{"user": "What?", "assistant": "是"}]},
    {"images": [], "texts": [{"user": "Why?", "assistant": "so"}, {"user": "Sure?", "assistant": "yes"}]},
    {
        "images": [{"bytes": b"b", "path": None}, {"bytes": b"c", "path": None}],
        "texts": [{"user": "Which?", "assistant": "x"}],
    },
    {"images": [{"bytes": b"d", "path": None}], "texts": [{"user": "See <image>?", "assistant": "y"}]},
    {"images": None, "texts": [{"user": "Empty?", "assistant": "z"}]},
    {"images": [{"bytes": None, "path": "x.jpg"}], "texts": None},
]


@pytest.fixture
def rows_of(tmp_path):
    def write(rows: list = ROWS, path: str = "part.parquet") -> list:
        pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "part.parquet", row_group_size=2)
        return list(read(SourceConfig(path=str(tmp_path / path), format="parquet")))

    return write


def test_rows_of_all_groups_are_read_with_their_pictures(rows_of):
    rows = rows_of()
    assert [row.id for row in rows] == [f"part/{group}/{row}" for group in range(3) for row in range(2)]
    images = [image for row in rows[:5] for image in row.sample.images]
    assert [pickle.loads(pickle.dumps(image)).read() for image in images] == [b"a", b"b", b"c", b"d"]
    assert images[2].name == "part.parquet/1/0/1"
    assert rows[0].sample.turns == (Turn("user", "<image>\nWhat?"), Turn("assistant", "是"))
    assert [turn.text for turn in rows[1].sample.turns] == ["Why?", "so", "Sure?", "yes"]
    assert rows[2].sample.turns[0].text == "<image>\n<image>\nWhich?"
    assert rows[3].sample.turns[0].text == "See <image>?"
    assert rows[4].sample.images == ()
    assert rows[5].sample.code == "format"


def test_a_picture_without_bytes_is_missing(rows_of):
    (row,) = rows_of([ROWS[5] | {"texts": ROWS[0]["texts"]}])
    with pytest.raises(ValueError, match="no bytes"):
        row.sample.images[0].read()


def test_pictures_that_are_bytes_alone_are_counted(rows_of):
    rows = rows_of([{"images": [{"bytes": b"a"}], "texts": ROWS[0]["texts"]}] * 3)
    assert [row.sample.images[0].read() for row in rows] == [b"a"] * 3


def test_all_files_of_a_folder_are_read(rows_of):
    assert len(rows_of(path=".")) == len(ROWS)


def test_other_files_are_named(rows_of, tmp_path):
    with pytest.raises(Unusable, match="no column 'texts' but image, label"):
        rows_of([{"image": 1, "label": 2}])
    (tmp_path / "part.parquet").write_text("text")
    with pytest.raises(Unusable, match="is no parquet file") as fault:
        list(read(SourceConfig(path=str(tmp_path / "part.parquet"), format="parquet")))
    assert "\n" not in str(fault.value)
