import hashlib

import pytest

from vlm import files


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_whole(path, b"old")

    def full(target):
        raise OSError("disk full")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"


def test_the_hash_is_that_of_the_contents(tmp_path):
    data = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
