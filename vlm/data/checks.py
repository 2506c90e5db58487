"""What a sample must pass before it is written: its pictures decode, its turns make sense, its tokens fit."""

from dataclasses import dataclass, replace

import numpy as np

from vlm.config import Form, Stored
from vlm.data.chat import Chat
from vlm.data.contamination import Excluded
from vlm.data.duplicates import NONE, digest_of
from vlm.data.images import Damaged, Image
from vlm.data.pictures import Picture, inspect
from vlm.data.samples import Reject, Row, Sample


@dataclass(frozen=True)
class Checked:
    """A sample that can be trained on, with what the index says of it."""

    sample: Sample  # without the turns that did not fit
    pictures: list[Picture]
    tokens: int  # image tokens included
    targets: int  # supervised tokens
    cut_turns: int
    digest: bytes  # of its pictures and its text, to find duplicates by

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first picture, pixels; 0, 0 without one."""
        return (self.pictures[0].width, self.pictures[0].height) if self.pictures else (0, 0)


@dataclass(frozen=True)
class Lengths:
    """What the text of a sample comes to."""

    tokens: int
    targets: int
    cut_turns: int


@dataclass(frozen=True)
class Checks:
    """The limits, and what it takes to count tokens."""

    chat: Chat
    form: Form
    max_tokens: int
    max_pixels: int
    max_image_bytes: int = 268_435_456
    excluded: Excluded | None = None
    others_stored_as: Stored = Stored.png

    def lengths(self, row: Row) -> Lengths | Reject:
        """Return what a row's text comes to, or why it is no good."""
        if isinstance(row.sample, Reject):
            return row.sample
        try:
            encoded = self.chat.encode(row.sample.turns, len(row.sample.images), self.form, self.max_tokens)
        except Reject as reason:
            return reason
        return Lengths(len(encoded.ids), int(np.count_nonzero(encoded.is_target)), encoded.cut_turns)

    def of(self, row: Row, lengths: Lengths | Reject) -> Checked:
        """Check a row of a corpus, whose text was looked at before: many texts in a row take half the time.

        Raises Reject, with the reason, if it is no good or not wanted; a fault of a picture comes first.
        """
        if isinstance(row.sample, Reject):
            raise row.sample
        sample = row.sample
        files = [self._bytes(image) for image in sample.images]
        pictures = [self._picture(image, data) for image, data in zip(sample.images, files, strict=True)]
        if isinstance(lengths, Reject):
            raise lengths
        for data in files if self.excluded else ():
            self.excluded.check(data)
        kept = sample
        if lengths.cut_turns:
            kept = replace(sample, turns=sample.turns[: -lengths.cut_turns])
        return Checked(kept, pictures, lengths.tokens, lengths.targets, lengths.cut_turns, digest_of(row, files))

    def digest(self, row: Row) -> bytes:
        """Return the digest of a row that was not checked; NONE if it has none."""
        if isinstance(row.sample, Reject):
            return NONE
        try:
            return digest_of(row, [self._bytes(image) for image in row.sample.images])
        except Reject:
            return NONE

    def _bytes(self, image: Image) -> bytes:
        try:
            size = image.size()
            data = image.read() if size <= self.max_image_bytes else b""
        except Damaged as problem:
            raise Reject("corrupt", f"{image}: {problem}") from None
        except (OSError, ValueError) as problem:  # a name with a zero byte is a ValueError
            raise Reject("missing_image", f"{image}: {getattr(problem, 'strerror', None) or problem}") from None
        if max(size, len(data)) > self.max_image_bytes:
            raise Reject("too_large", f"{image}: {max(size, len(data))} bytes, more than {self.max_image_bytes}")
        return data

    def _picture(self, image: Image, data: bytes) -> Picture:
        try:
            return inspect(data, self.max_pixels, self.max_image_bytes, self.others_stored_as)
        except Reject as reason:
            raise Reject(reason.code, f"{image}: {reason.detail}") from None
