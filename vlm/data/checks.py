"""What a sample must pass before it is written: its pictures decode, its turns make sense, its tokens fit."""

from dataclasses import dataclass, replace
from pathlib import Path

from vlm.config import Form
from vlm.data.chat import Chat
from vlm.data.pixels import Picture, inspect
from vlm.data.sources import Reject, Row, Sample


@dataclass(frozen=True)
class Checked:
    """A sample that can be trained on, with what the index says of it."""

    sample: Sample  # without the turns that did not fit
    pictures: list[Picture]
    tokens: int  # image tokens included
    targets: int  # supervised tokens
    cut_turns: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first picture, pixels; 0, 0 without one."""
        return (self.pictures[0].width, self.pictures[0].height) if self.pictures else (0, 0)


@dataclass(frozen=True)
class Checks:
    """The limits, and what it takes to count tokens."""

    chat: Chat
    form: Form
    max_tokens: int
    max_pixels: int

    def of(self, row: Row) -> Checked:
        """Check a row of a corpus.

        Raises Reject, with the reason, if it is no good.
        """
        if isinstance(row.sample, Reject):
            raise row.sample
        sample = row.sample
        pictures = [self._picture(path) for path in sample.images]
        encoded = self.chat.encode(sample.turns, len(pictures), self.form, self.max_tokens)
        kept = replace(sample, turns=sample.turns[: len(sample.turns) - encoded.cut_turns])
        return Checked(kept, pictures, len(encoded.ids), int(encoded.is_target.sum()), encoded.cut_turns)

    def _picture(self, path: Path) -> Picture:
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as problem:  # a name with a zero byte is a ValueError
            raise Reject("missing_image", f"{path}: {getattr(problem, 'strerror', problem)}") from None
        try:
            return inspect(data, self.max_pixels)
        except Reject as reason:
            raise Reject(reason.code, f"{path}: {reason.detail}") from None
