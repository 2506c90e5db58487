"""The index of a split: one row for each sample, so that any sample is one read away.

A split is a folder of ordinary WebDataset tars, index.npy and shards.json. A row of the index says where the
sample's tar members lie and what the plan needs to know of it; shards.json names the shards and what they hold.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng.zlib_ng import crc32

from vlm.config import Form
from vlm.data.samples import Sample, Turn
from vlm.errors import Unusable

ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),  # of the sample's first tar header, bytes
        ("size", "<u4"),  # of all its members with their headers, bytes
        ("crc32", "<u4"),  # of those bytes
        ("source", "<u2"),  # into shards.json's list
        ("images", "<u2"),
        ("width", "<u4"),  # of the first picture, pixels; 0 without one
        ("height", "<u4"),
        ("tokens", "<u4"),  # image tokens included
        ("targets", "<u4"),  # supervised tokens
    ]
)
BLOCK = 512  # of a tar, bytes
INDEX = "index.npy"
MANIFEST = "shards.json"
DECODER = json.JSONDecoder()  # json.loads guesses the encoding first, and looks for spaces


@dataclass(frozen=True)
class Stored:
    """A sample as it lies in its shard."""

    sample: Sample  # without pictures
    pictures: tuple[bytes, ...]
    cut_turns: int = 0  # at its end, to stay within the limit


class Split:
    """A whole split, read by sample number; nothing but the index is held in memory."""

    def __init__(self, folder: Path) -> None:
        """Open the split.

        Raises Unusable if the folder holds none.
        """
        if not (folder / MANIFEST).is_file():
            raise Unusable(f"{folder} holds no shards: stage 02 was not given a corpus for {folder.name}")
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        self.rows = np.load(folder / INDEX, mmap_mode="r")
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def form(self) -> Form:
        """The form its tokens were counted in."""
        return Form(self.manifest["form"])

    @property
    def fingerprint(self) -> str:
        """Hash over the contents of all shards."""
        return self.manifest["fingerprint"]

    def read(self, number: int) -> Stored:
        """Read one sample.

        Raises Unusable if its bytes are not those that were written.
        """
        # the row at once, its fields as ROW has them: one by one they take twice as long
        shard, offset, size, written, *_ = self.rows[number].item()
        data = os.pread(self._file(shard), size, offset)
        if crc32(data) != written:
            raise Unusable(f"{self.folder}/{shard_name(shard)} is damaged at byte {offset}: shard again")
        return _unpack(data)

    def outline(self, number: int) -> tuple[Sample, tuple[str, ...]]:
        """Read one sample, with 16 hex digits over the bytes of each of its pictures in their place."""
        stored = self.read(number)
        return stored.sample, tuple(hashlib.sha256(data).hexdigest()[:16] for data in stored.pictures)

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            self._files[shard] = os.open(self.folder / shard_name(shard), os.O_RDONLY)
        return self._files[shard]


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:06d}.tar"


def record_of(sample: Sample, cut_turns: int = 0) -> dict[str, Any]:
    """Return what a shard's json member says of a sample; `_unpack` reads it back."""
    turns = [{"role": turn.role, "text": turn.text} for turn in sample.turns]
    record = {"id": sample.id, "source": sample.source, "turns": turns, "extra": dict(sample.extra)}
    return record | ({"cut_turns": cut_turns} if cut_turns else {})


def tar_size(data: bytes) -> int:
    """Return the bytes that a tar member with this content takes: its header, and the content in whole blocks."""
    return BLOCK + -(-len(data) // BLOCK) * BLOCK


def members_of(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the record, as JSON, and the pictures of a sample whose tar members these bytes are."""
    pictures: dict[int, bytes] = {}
    record = b""
    at = 0
    while at < len(data):  # ustar: name from byte 0 to a zero, size in 11 octal digits from byte 124
        size = int(data[at + 124 : at + 135], 8)
        _, _, extension = data[at : data.index(b"\0", at)].partition(b".")
        at += BLOCK
        content = data[at : at + size]
        if extension == b"json":
            record = content
        else:
            number, _, is_numbered = extension.partition(b".")
            pictures[int(number) if is_numbered else 0] = content
        at += -(-size // BLOCK) * BLOCK
    return record, tuple([pictures[i] for i in sorted(pictures)])


def _unpack(data: bytes) -> Stored:
    written, pictures = members_of(data)
    record, _ = DECODER.raw_decode(written.decode())
    turns = tuple([Turn(turn["role"], turn["text"]) for turn in record["turns"]])
    sample = Sample(record["id"], record["source"], turns, extra=record["extra"])
    return Stored(sample, pictures, record.get("cut_turns", 0))
