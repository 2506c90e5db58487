"""Files and folders that survive a power cut whole, or are not there."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it once it is on disk."""
    with written_whole(path) as file:
        file.write(data)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which gets its name once it is on disk; if the body fails, nothing is left of it."""
    waiting = path.with_name(path.name + ".tmp")
    try:
        with waiting.open("wb") as file:
            yield file
        sync(waiting)
    except BaseException:
        waiting.unlink(missing_ok=True)
        raise
    waiting.rename(path)


def sha256(path: Path) -> str:
    """Return the hash of a file's contents, in hex, reading it block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
