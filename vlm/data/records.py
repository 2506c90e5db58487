"""JSON of any size, record by record, in constant memory."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from vlm.errors import Unusable

BOM = b"\xef\xbb\xbf"


def json_records(path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list, or the lines of a JSON lines file.

    Raises Unusable where the text is no JSON.
    """
    with path.open("rb") as handle:
        if _first_byte(handle) == b"[":
            yield from _parsed(path, "list", ijson.items(handle, "item", use_float=True))
        else:
            yield from _json_lines(path, handle)


def json_list(path: Path, key: str, *, may_be_missing: bool = False) -> Iterator[Any]:
    """Yield the elements of the list under `key` of a JSON object, like COCO's {"annotations": [...]}.

    Raises Unusable if the file is of another shape, has no such list (or an empty one), or is no JSON.
    """
    with path.open("rb") as handle:
        _expect_object(path, handle, f'{{"{key}": [...]}}')
        records = _parsed(path, "object", ijson.items(handle, f"{key}.item", use_float=True))
        is_empty = True
        for record in records:
            is_empty = False
            yield record
        if is_empty and not may_be_missing:
            raise Unusable(f"{path} has no records in a list called {key!r}")


def json_map(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a JSON object.

    Raises Unusable if the file is of another shape or no JSON.
    """
    with path.open("rb") as handle:
        _expect_object(path, handle, '{"key": ...}')
        yield from _parsed(path, "object", ijson.kvitems(handle, "", use_float=True))


def joined(
    records: Iterator[dict[str, Any]], others: Iterator[dict[str, Any]], key: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
    """Yield each record with the other one of the same key, or None.

    Memory is constant where both come in the same order; what comes early is kept until it is asked for.
    """
    waiting: dict[Any, Any] = {}
    for record in records:
        wanted = key(record)
        while wanted not in waiting and (other := next(others, None)) is not None:
            waiting[key(other)] = other
        yield record, waiting.pop(wanted, None)


def _first_byte(handle: BinaryIO) -> bytes:
    """Return the first byte that is no space; leave the file at its beginning, after a byte order mark."""
    start = len(BOM) if handle.read(len(BOM)) == BOM else 0
    handle.seek(start)
    first = next((byte for byte in iter(lambda: handle.read(1), b"") if byte.strip()), b"")
    handle.seek(start)
    return first


def _expect_object(path: Path, handle: BinaryIO, shape: str) -> None:
    first = _first_byte(handle)
    if first != b"{":
        found = "a list stands" if first == b"[" else "no JSON object stands"
        raise Unusable(f"{path}: {found} where {shape} is expected")


def _parsed(path: Path, what: str, items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except ijson.JSONError as problem:
        raise Unusable(f"{path} is no whole JSON {what}: {str(problem).splitlines()[0]}") from None


def _json_lines(path: Path, handle: Iterator[bytes]) -> Iterator[Any]:
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as problem:
            raise Unusable(f"{path}, line {number}: no JSON ({problem})") from None
