"""Which rows of the corpora become which split: what trains, and what is held out from it.

A picture is on one side only. It is known by its name inside its corpus, so the sides stay the same wherever the
corpus is stored, and whether its pictures are packed; a corpus inside another's folder counts as a part of that.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from vlm.config import SourceConfig, SplitConfig
from vlm.data.images import normalised
from vlm.data.samples import Reject, Row, Sample, draw
from vlm.data.sources import read


@dataclass(frozen=True)
class Part(Iterable[Row]):
    """The rows of one split, in their order; they may be gone through more than once."""

    split: SplitConfig
    seed: int
    is_held_out: bool

    def __iter__(self) -> Iterator[Row]:
        fraction = self.split.held_out_fraction
        if self.is_held_out:
            yield from _rows(self.split.held_out, self.seed)
        if self.is_held_out and not fraction:
            return
        folders = nesting(self.split.sources)
        for row in _rows(self.split.sources, self.seed):
            side = is_held_out(row, self.seed, fraction, folders.get(row.source, ""))
            if side is self.is_held_out:
                yield row
            elif side is None and not self.is_held_out:
                detail = "some of its pictures are held out and some are trained on"
                yield replace(row, sample=Reject("both_sides", detail))


def parts(name: str, split: SplitConfig, seed: int) -> dict[str, Part]:
    """Return what trains and what is held out, by the name of the split."""
    found = {}
    if split.sources:
        found[name] = Part(split, seed, is_held_out=False)
    if split.held_out or split.held_out_fraction:
        found[f"{name}_held_out"] = Part(split, seed, is_held_out=True)
    return found


def is_held_out(row: Row, seed: int, fraction: float, folder: str = "") -> bool | None:
    """Decide by the row's pictures (or its id, without any); None if they fall on both sides."""
    if not fraction:
        return False
    images = row.sample.images if isinstance(row.sample, Sample) else ()
    names = {normalised(f"{folder}/{image.name}") for image in images} or {f"{row.source}/{row.id}"}
    sides = {draw(seed, name) < fraction * 2**64 for name in names}
    return sides.pop() if len(sides) == 1 else None


def nesting(sources: list[SourceConfig]) -> Mapping[str, str]:
    """Return, for each source whose pictures lie inside another's folder, the path from there to its own."""
    roots = {one.label: os.path.abspath(one.images.removesuffix(".zip")) for one in sources if one.images}  # noqa: PTH100
    inside = {}
    for label, root in roots.items():
        outer = min((other for other in roots.values() if f"{root}/".startswith(f"{other}/")), key=len)
        if outer != root:
            inside[label] = os.path.relpath(root, outer)
    return inside


def _rows(sources: list[SourceConfig], seed: int) -> Iterator[Row]:
    return itertools.chain.from_iterable(read(source, seed) for source in sources)
