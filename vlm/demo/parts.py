"""Folders that are either whole or not there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def make_part(folder: Path, build: Callable[[Path], None]) -> None:
    """Have `build` fill `folder`, which gets its name only once everything in it is on the disk.

    A part that is there is left alone; what an interrupted call left is thrown away and built anew.
    """
    if folder.exists():
        print(f"{folder}: there already")
        return
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    build(partial)
    for path in [*partial.rglob("*"), partial]:
        _flush(path)
    partial.rename(folder)
    _flush(folder.parent)
    print(f"{folder}: written")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
