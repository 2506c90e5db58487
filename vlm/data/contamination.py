"""Pictures that training must not see: those of the corpora in data.exclude, as they are or nearly so.

Equal is equal sha256. Nearly equal is a difference hash (dHash: 64 bits, each says whether a cell of an 8 x 9 grey
miniature is darker than its right neighbour) in which at most `distance` bits differ; it survives another size,
another compression and another format, not cropping or turning.
"""

import hashlib
import io
import itertools
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from vlm.config import SourceConfig
from vlm.data.images import Damaged, Image
from vlm.data.pictures import inspect, to_rgb
from vlm.data.samples import Reject, Sample
from vlm.data.sources import read
from vlm.errors import Hindered, Unusable

PICTURES_AT_ONCE = 64  # handed to a process
FEWEST_BITS = 4  # set or unset: a flat picture's hash says nothing, and only equal bytes count


@dataclass(frozen=True)
class Excluded:
    """The pictures of the excluded corpora."""

    digests: Mapping[bytes, str]  # sha256 → name
    hashes: NDArray[np.uint64]  # (N,)
    names: tuple[str, ...]  # of `hashes`
    distance: int | None

    @classmethod
    def of(cls, sources: list[SourceConfig], distance: int | None, max_pixels: int, workers: int) -> "Excluded | None":
        """Read the pictures of the corpora; None if there is no corpus.

        Raises Unusable if one is missing, or a picture cannot be read: an exclusion with gaps would be none. Hindered if a
        worker is killed.
        """
        if not sources:
            return None
        digests: dict[bytes, str] = {}
        hashes: dict[int, str] = {}
        images = _images(sources)
        batches = iter(lambda: list(itertools.islice(images, PICTURES_AT_ONCE)), [])
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            found = itertools.chain.from_iterable(pool.map(_fingerprints, batches, itertools.repeat(max_pixels)))
            try:
                for name, digest, bits in found:
                    digests.setdefault(digest, name)
                    if bits is not None:
                        hashes.setdefault(bits, name)
            except BrokenProcessPool:
                raise Hindered("data.exclude: a worker process was killed, perhaps for its memory: run again") from None
        return cls(digests, np.array([*hashes], np.uint64), tuple(hashes.values()), distance)

    def check(self, data: bytes) -> None:
        """Check a picture that was found good.

        Raises Reject if it is equal, or near-equal, to an excluded one.
        """
        same = self.digests.get(hashlib.sha256(data).digest())
        if same is not None:
            raise Reject("excluded_same", f"its picture is {same}")
        bits = difference_hash(data) if self.distance is not None and len(self.hashes) else None
        if bits is None:
            return
        differing = np.bitwise_count(self.hashes ^ np.uint64(bits))
        nearest = int(differing.argmin())
        if differing[nearest] <= self.distance:
            raise Reject(
                "excluded_similar", f"its picture is like {self.names[nearest]}, {differing[nearest]} bits off"
            )


def difference_hash(data: bytes) -> int | None:
    """Return the picture's 64-bit difference hash, or None if the picture is too flat to have one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size warning: the picture was checked before
        picture = PIL.Image.open(io.BytesIO(data))
        picture.draft("L", (72, 64))  # a JPEG is decoded at a fraction of its size
        grey = to_rgb(picture).convert("L").resize((9, 8), PIL.Image.Resampling.BOX)
    cells = np.asarray(grey)
    bits = int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")
    return bits if FEWEST_BITS <= bits.bit_count() <= 64 - FEWEST_BITS else None


def _images(sources: list[SourceConfig]) -> Iterator[Image]:
    """Yield each picture once, however many questions are asked about it."""
    seen = set()
    for row in itertools.chain.from_iterable(map(read, sources)):
        for image in row.sample.images if isinstance(row.sample, Sample) else ():
            if image not in seen:
                seen.add(image)
                yield image


def _fingerprints(images: Iterable[Image], max_pixels: int) -> list[tuple[str, bytes, int | None]]:
    found = []
    for image in images:
        try:
            data = image.read()
            inspect(data, max_pixels)
        except (OSError, ValueError, Damaged, Reject) as problem:
            raise Unusable(f"data.exclude: the picture {image} cannot be read: {problem}") from None
        found.append((str(image), hashlib.sha256(data).digest(), difference_hash(data)))
    return found
