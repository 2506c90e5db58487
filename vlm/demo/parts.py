"""Folders that are either whole or not there."""

import shutil
from collections.abc import Callable
from pathlib import Path

from vlm.files import sync


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
        sync(path)
    partial.rename(folder)
    sync(folder.parent)
    print(f"{folder}: written")
