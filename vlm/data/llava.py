"""LLaVA's conversations, and the same with the names that LLaMA-Factory gives them.

{"id", "image"?: name or list of names, "conversations": [{"from": "human" | "gpt", "value"}]}
{"images"?: names, "messages": [{"role": "user" | "assistant", "content"}]}

mix665k, LLaVA-CC3M-595K and LLaVA-Pretrain are of the first shape; their pictures' names are paths with the
corpus's own folders. Whatever else a record has travels in `extra`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.config import SourceConfig
from vlm.data.records import json_records
from vlm.data.samples import Reject, Row, Sample, Turn, images_of, rows_of

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
READ = frozenset({"id", "image", "images", "conversations", "messages"})


def llava(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the conversations of a JSON list or a JSON lines file."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        extra = {key: value for key, value in record.items() if key not in READ}
        return Sample(identity, source.label, _turns(record), tuple(map(image, _names(record))), extra)

    return rows_of(source.label, identified(json_records(Path(source.path))), make)


def identified(records: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each record with its id, always a string; one without is named by its place."""
    for number, record in enumerate(records):
        has_id = isinstance(record, dict) and record.get("id") is not None
        yield str(record["id"]) if has_id else f"row{number}", record


def _names(record: Mapping[str, Any]) -> list[str]:
    names = record.get("image") or record.get("images") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Reject("format", "'image' is neither a name nor a list of names")
    return names


def _turns(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    if isinstance(record.get("messages"), list):
        return tuple(_turn(entry, "role", "content") for entry in record["messages"])
    if not isinstance(record.get("conversations"), list):
        raise Reject("format", "the record has no list of conversations")
    return tuple(_turn(entry, "from", "value") for entry in record["conversations"])


def _turn(entry: object, speaker: str, text: str) -> Turn:
    if not isinstance(entry, dict) or not isinstance(entry.get(text), str):
        raise Reject("format", f"a turn has no text under '{text}'")
    role = ROLES.get(str(entry.get(speaker)))
    if role is None:
        raise Reject("roles", f"a turn comes from {entry.get(speaker)!r}, not from human or gpt")
    return Turn(role, entry[text])
