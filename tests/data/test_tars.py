import io
import json
import tarfile

import pytest

from vlm.config import SourceConfig
from vlm.data.sources import read
from vlm.errors import Unusable


def pack(path, members: list[tuple[str, bytes]], mode: str = "w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rows_of(path, **settings) -> list:
    return list(read(SourceConfig(path=str(path), format="tars", **settings)))


def as_json(**content) -> bytes:
    return json.dumps(content).encode()


def test_pictures_are_read_where_they_lie_with_their_caption(tmp_path):
    members = [
        ("0000.jpg", b"one" * 300),
        ("0000.json", as_json(caption="not this", url="http://x", exif="{}")),
        ("0000.txt", "一张 图".encode()),
        ("sub/0001.PNG", b"two"),
        ("sub/0001.json", as_json(caption="from json", width=3)),
    ]
    one, two = rows_of(pack(tmp_path / "00000.tar", members))
    assert one.sample.turns[0].text == "<image>\nProvide a brief description of the given image."
    assert (one.id, one.sample.turns[1].text, one.sample.images[0].read()) == ("0000", "一张 图", b"one" * 300)
    assert one.sample.extra == {"url": "http://x"}
    assert (two.id, two.sample.turns[1].text, two.sample.images[0].read()) == ("sub/0001", "from json", b"two")
    assert one.sample.images[0].name == "00000.tar/0000.jpg"


def test_all_tars_of_a_folder_are_read_by_their_names(tmp_path):
    for number in (1, 0):
        pack(tmp_path / f"{number:05d}.tar", [("a.jpg", b"x"), ("a.txt", str(number).encode())])
    assert [row.sample.turns[1].text for row in rows_of(tmp_path)] == ["0", "1"]


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ([("a.txt", b"x")], "missing_image"),
        ([("a.jpg", b"x")], "format"),
        ([("a.jpg", b"x"), ("a.json", b"{")], "format"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], "format"),
        ([("a.jpg", b"x"), ("a.json", as_json(caption=None))], "format"),
        ([("a.jpg", b"x"), ("a.txt", b"\xff\xfe")], "text"),
    ],
)
def test_a_pair_that_is_not_whole_is_rejected(tmp_path, members, code):
    rows = rows_of(pack(tmp_path / "0.tar", [*members, ("b.jpg", b"x"), ("b.txt", b"good")]))
    assert [getattr(row.sample, "code", None) for row in rows] == [code, None]


def test_what_is_no_whole_tar_is_named(tmp_path):
    whole = pack(tmp_path / "whole.tar", [("a.jpg", b"x" * 5000), ("b.jpg", b"x" * 5000)])
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:7000])
    (tmp_path / "text.tar").write_text("text")
    pack(tmp_path / "packed.tar", [("a.jpg", b"x")], "w:gz")
    for name in ("cut", "text", "packed"):
        with pytest.raises(Unusable, match=f"{name}.tar is no whole, uncompressed tar") as fault:
            rows_of(tmp_path / f"{name}.tar")
        assert "\n" not in str(fault.value)
