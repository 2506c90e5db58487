"""Corpora on disk become samples. A reader is one function `path → iterator of rows`; a new format is one more.

A row is a sample or the reason why it is none, so that a bad one is counted where it stands and never
becomes another sample.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ijson

from vlm.config import SourceConfig, SourceFormat
from vlm.errors import Unusable

IMAGE = "<image>"  # where a picture stands in the text of every corpus; the tokenizer's own token may differ
BOM = b"\xef\xbb\xbf"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Reject(Exception):
    """Why a sample cannot be used: a short code to count by, and the detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)  # both, or it could not be sent to a worker process
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: str  # user | assistant | system
    text: str


@dataclass(frozen=True)
class Sample:
    """One conversation with its pictures, in reading order."""

    id: str
    source: str
    turns: tuple[Turn, ...]
    images: tuple[Path, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)  # what scoring needs: question_id, category, …


@dataclass(frozen=True)
class Row:
    """One record of a corpus, in the order of its file."""

    source: str
    id: str
    sample: Sample | Reject


def check(source: SourceConfig) -> None:
    """Check that a corpus is there, without reading it.

    Raises Unusable if its file or its picture folder is missing.
    """
    hint = ": run  python -m vlm.demo  first, or choose data=" if source.path.startswith("demo/") else ""
    if not Path(source.path).is_file():
        raise Unusable(f"data source {source.label}: {source.path} is not there{hint}")
    if source.images is not None and not Path(source.images).is_dir():
        raise Unusable(f"data source {source.label}: the picture folder {source.images} is not there{hint}")


def read(source: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a corpus in the order of its file, in constant memory.

    Raises Unusable if the file or the picture folder is missing, or the file is no JSON.
    """
    check(source)
    for number, record in enumerate(itertools.islice(READERS[source.format](Path(source.path)), source.limit)):
        yield _row(source.label, number, record, source.images)


def json_records(path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list, or the lines of a JSON lines file.

    Raises Unusable where the text is no JSON.
    """
    with path.open("rb") as handle:
        head = handle.read(4096)
        handle.seek(len(BOM) if head.startswith(BOM) else 0)
        if head.removeprefix(BOM).lstrip().startswith(b"["):
            try:
                yield from ijson.items(handle, "item", use_float=True)
            except ijson.JSONError as problem:
                raise Unusable(f"{path} is no whole JSON list: {str(problem).splitlines()[0]}") from None
        else:
            yield from _json_lines(path, handle)


READERS = {SourceFormat.llava: json_records}


def _json_lines(path: Path, handle: Iterator[bytes]) -> Iterator[Any]:
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as problem:
            raise Unusable(f"{path}, line {number}: no JSON ({problem})") from None


def _row(source: str, number: int, record: object, root: str | None) -> Row:
    fallback = f"row{number}"
    if not isinstance(record, dict):
        return Row(source, fallback, Reject("format", f"a {type(record).__name__} stands where a record is expected"))
    identity = fallback if record.get("id") is None else str(record["id"])
    try:
        return Row(source, identity, _llava_sample(source, identity, record, root))
    except Reject as reason:
        return Row(source, identity, reason)


def _llava_sample(source: str, identity: str, record: Mapping[str, Any], root: str | None) -> Sample:
    conversations = record.get("conversations")
    if not isinstance(conversations, list):
        raise Reject("format", "the record has no list of conversations")
    turns = tuple(_turn(entry) for entry in conversations)
    names = record.get("image") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Reject("format", "'image' is neither a name nor a list of names")
    if names and root is None:
        raise Reject("no_image_folder", "the record names a picture but its source has no images= folder")
    extra = {key: value for key, value in record.items() if key not in {"id", "image", "conversations"}}
    return Sample(identity, source, turns, tuple(Path(root or "") / name for name in names), extra)


def _turn(entry: object) -> Turn:
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
        raise Reject("format", "a turn has no text under 'value'")
    role = ROLES.get(str(entry.get("from")))
    if role is None:
        raise Reject("roles", f"a turn comes from {entry.get('from')!r}, not from human or gpt")
    return Turn(role, entry["value"])
