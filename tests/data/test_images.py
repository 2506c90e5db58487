import io
import os
import pickle
import tarfile
import zipfile
from dataclasses import replace

import pytest

from vlm.data.images import Damaged, InFolder, InTar, Zip, images_at, normalised


@pytest.fixture
def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as made:
        made.writestr("a/stored.jpg", b"stored" * 50, zipfile.ZIP_STORED)
        made.writestr("a/packed.jpg", b"packed" * 50, zipfile.ZIP_DEFLATED)
        made.writestr("images/inner.jpg", b"inner")
        made.writestr("other.jpg", b"other" * 50, zipfile.ZIP_LZMA)
    return tmp_path / "images.zip"


@pytest.mark.parametrize(
    ("path", "name"),
    [("b", "b"), ("a/../b", "b"), ("./a//b", "a/b"), ("../b", "b"), ("/b", "b"), ("a\\b", "a/b"), (".", "")],
)
def test_a_name_has_one_spelling(path, name):
    assert normalised(path) == name


def test_a_folder_and_a_zip_of_it_give_the_same_names_and_bytes(archive, tmp_path):
    (tmp_path / "unpacked").mkdir()
    zipfile.ZipFile(archive).extractall(tmp_path / "unpacked")
    for path in ("a/stored.jpg", "a/packed.jpg", "./a/../a/packed.jpg"):
        packed, loose = images_at(str(archive))(path), images_at(str(tmp_path / "unpacked"))(path)
        assert packed.name == loose.name
        assert packed.read() == loose.read()
        assert packed.size() == loose.size() == len(loose.read())
        assert str(packed) == f"{archive}/{path}"


def test_a_reference_is_small_and_read_in_another_process(archive):
    image = pickle.loads(pickle.dumps(Zip(str(archive)).image("a/packed.jpg")))
    assert image.read() == b"packed" * 50
    assert len(pickle.dumps(image)) < 300


def test_a_member_may_lie_in_a_folder_named_like_the_archive(archive):
    image = Zip(str(archive)).image("inner.jpg")
    assert image.read() == b"inner"
    assert image.name == "inner.jpg"


def test_what_a_zip_does_not_have_is_missing(archive):
    image = Zip(str(archive)).image("none.jpg")
    with pytest.raises(ValueError, match="no such member"):
        image.read()


def test_a_damaged_member_is_named_so(archive):
    packed = Zip(str(archive)).image("a/packed.jpg")
    data = bytearray(archive.read_bytes())
    at = data.index(b"storedstored")
    data[at : at + 6] = b"ruined"
    start = packed.offset + 30 + len("a/packed.jpg")
    data[start : start + 4] = b"\xff\xff\xff\xff"
    archive.write_bytes(data)
    for path in ("a/stored.jpg", "a/packed.jpg", "other.jpg"):  # the last is packed in a rare way
        with pytest.raises(Damaged):
            Zip(str(archive)).image(path).read()
    with pytest.raises(Damaged, match="no member where"):
        replace(packed, offset=packed.offset + 1).read()


def test_a_zip_bomb_is_not_unpacked_beyond_what_it_declares(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.jpg", bytes(50_000_000))
    image = Zip(str(tmp_path / "bomb.zip")).image("a.jpg")
    assert image.size() == 50_000_000
    with pytest.raises(Damaged):
        replace(image, length=1000).read()


def test_an_encrypted_member_is_not_read(archive):
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\1\2")  # the first entry of the directory
    data[at + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(Damaged, match="encrypted"):
        Zip(str(archive)).image("a/stored.jpg").read()


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, fault in ((".", "Is a directory"), ("pipe", "no regular file"), ("a\0", "null")):
        with pytest.raises(ValueError, match=fault):
            InFolder(str(tmp_path), path).read()
    with pytest.raises(FileNotFoundError):
        InFolder(str(tmp_path), "none").read()


def test_a_tar_member_is_read_where_it_lies(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(name[:1].encode() * 700))
    with tarfile.open(tmp_path / "0.tar") as tar:
        found = tar.getmember("b.jpg")
    image = InTar(str(tmp_path / "0.tar"), "b.jpg", found.offset_data, found.size)
    assert image.read() == b"b" * 700
    assert (image.name, image.size()) == ("0.tar/b.jpg", 700)
    with pytest.raises(Damaged, match="ends inside"):
        replace(image, length=10**6).read()
