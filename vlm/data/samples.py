"""What every reader makes of a corpus: samples, or the reason why a record is none.

A row is a sample or a Reject, so that a bad record is counted where it stands and never becomes another sample.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm.config import SourceConfig
from vlm.data.images import Image, images_at

IMAGE = "<image>"  # where a picture stands in the text of every corpus; the tokenizer's own token may differ
LEFT_OUT = frozenset({"both_sides", "duplicate", "excluded_same", "excluded_similar"})  # good, but not wanted


class Reject(Exception):
    """Why a sample cannot be used: a short code to count by, and the detail.

    Codes in LEFT_OUT say that a good sample is not wanted; they are listed apart and are no faults of the corpus.
    """

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
    images: tuple[Image, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)  # what scoring needs: question_id, category, answers, …


@dataclass(frozen=True)
class Row:
    """One record of a corpus, in the order of its file."""

    source: str
    id: str
    sample: Sample | Reject
    copy: int = 0  # which pass over a source that is repeated


def rows_of(
    source: str, records: Iterator[tuple[str, Any]], make: Callable[[str, dict[str, Any]], Sample]
) -> Iterator[Row]:
    """Yield a row for each (id, record); `make` may raise Reject, and what is no dict is rejected here."""
    for identity, record in records:
        try:
            if not isinstance(record, dict):
                raise Reject("format", f"a {type(record).__name__} stands where a record is expected")
            sample: Sample | Reject = make(identity, record)
        except Reject as reason:
            sample = reason
        yield Row(source, identity, sample)


def images_of(source: SourceConfig) -> Callable[[str], Image]:
    """Return the function that makes references to a corpus's pictures; it raises Reject if it has no place for them.

    Raises zipfile.BadZipFile or OSError if `images` is a file but no zip archive.
    """
    if source.images is not None:
        return images_at(source.images)

    def refuse(name: str) -> Image:
        raise Reject("no_image_folder", f"the record names {name} but its source has no images= folder")

    return refuse


def draw(seed: int, name: str) -> int:
    """Return a number in [0, 2**64), the same for a name in every version of every library."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode(errors="backslashreplace")).digest()[:8], "big")


def caption_prompt(source: SourceConfig, seed: int, identity: str, usual: str) -> str:
    """Return what a caption answers: the source's own prompt, one of its prompts drawn by the seed, or the usual one."""
    if source.prompts:
        return source.prompts[draw(seed, f"prompt of {identity}") % len(source.prompts)]
    return source.prompt or usual


def asked(question: str, answer: str, *, shows_picture: bool = True) -> tuple[Turn, Turn]:
    """Return one exchange; the picture stands before the question."""
    return Turn("user", f"{IMAGE}\n{question}" if shows_picture else question), Turn("assistant", answer)


def text_of(record: Mapping[str, Any], key: str) -> str:
    """Return the text under `key`.

    Raises Reject if there is none.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise Reject("format", f"the record has no text under '{key}'")
    return value


def texts_of(record: Mapping[str, Any], key: str) -> list[str]:
    """Return the list of texts under `key`, at least one.

    Raises Reject if there is none.
    """
    value = record.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise Reject("format", f"the record has no list of texts under '{key}'")
    return value
