"""Files and folders that survive a power cut whole, or are not there."""

import hashlib
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it once it is on disk."""
    waiting = path.with_name(path.name + ".tmp")
    waiting.write_bytes(data)
    sync(waiting)
    waiting.rename(path)


def sha256(path: Path) -> str:
    """Return the hash of a file's contents, in hex, reading it block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
