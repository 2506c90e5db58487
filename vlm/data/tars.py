"""Tars of pictures and captions, as img2dataset writes them and LAION is passed on: KEY.jpg, KEY.txt, KEY.json.

The caption is the .txt, else the "caption" of the .json; the rest of the .json travels in `extra`. Pictures are
read where they lie in the tar, by the process that checks them.
"""

import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.config import SourceConfig
from vlm.data.coco import PROMPT
from vlm.data.images import InTar
from vlm.data.samples import Reject, Row, Sample, asked, caption_prompt, rows_of, text_of
from vlm.errors import Unusable

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
MAX_TEXT = 1 << 20  # bytes of a .txt or .json: beyond it it is no caption


def tars(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the pairs of a tar, or of all *.tar of a folder by their names."""

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        if record["image"] is None:
            raise Reject("missing_image", "the tar has no picture with this key")
        about = _about(record)
        text = _decoded(record["txt"]) if "txt" in record else text_of(about, "caption")
        extra = {key: value for key, value in about.items() if key not in {"caption", "exif"}}
        turns = asked(caption_prompt(source, seed, identity, PROMPT), text)
        return Sample(identity, source.label, turns, (record["image"],), extra)

    return rows_of(source.label, (pair for path in files_at(source.path, "tar") for pair in _pairs(path)), make)


def files_at(path: str, extension: str) -> list[Path]:
    """Return the file, or the files of a folder by their names."""
    return sorted(Path(path).glob(f"*.{extension}")) if Path(path).is_dir() else [Path(path)]


def _pairs(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key with its reference to a picture under 'image', and its small files by their extension."""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in itertools.groupby(_files(tar), lambda member: _cut(member.name)[0]):
                record: dict[str, Any] = {"image": None}
                for member in members:
                    extension = _cut(member.name)[1].lower()
                    if extension in PICTURES and record["image"] is None:
                        record["image"] = InTar(str(path), member.name, member.offset_data, member.size)
                    elif extension in {"txt", "json"} and member.size <= MAX_TEXT:
                        record[extension] = tar.extractfile(member).read()
                yield key, record
    except (tarfile.TarError, EOFError) as problem:
        raise Unusable(f"{path} is no whole, uncompressed tar: {problem}") from None


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # or every header of the tar is kept
        if member.isfile():
            yield member


def _cut(name: str) -> tuple[str, str]:
    """Return the key and the extension: all after the first dot of the file's name, as webdataset cuts it."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}{slash}{key}", extension


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        about = json.loads(record.get("json", b"{}"))
    except ValueError as problem:
        raise Reject("format", f"its .json is none: {problem}") from None
    if not isinstance(about, dict):
        raise Reject("format", f"its .json holds a {type(about).__name__}, not an object")
    return about


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as problem:
        raise Reject("text", f"its .txt is no UTF-8: {problem}") from None
