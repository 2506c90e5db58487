"""Samples that are there twice: the same bytes of the same pictures, and the same text.

What is compared is a hash of both, so that the names of samples, sources and pictures do not count. The passes over
a source that is repeated are compared each for itself, for there the same sample is wanted again.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm.data.samples import Row, Sample

DIGEST = 16  # bytes
NONE = bytes(DIGEST)  # of a row that has no pictures or text to compare


def digest_of(row: Row, pictures: Sequence[bytes]) -> bytes:
    """Return the hash to compare a sample by, of its pictures' bytes and its turns."""
    if not isinstance(row.sample, Sample):
        return NONE
    parts = [b"%d %d " % (row.copy, len(pictures)), *(hashlib.sha256(data).digest() for data in pictures)]
    for turn in row.sample.turns:
        text = turn.text.encode(errors="surrogatepass")
        parts += (b"%s %d " % (turn.role.encode(), len(text)), text)
    return hashlib.sha256(b"".join(parts)).digest()[:DIGEST]


def is_repeated(digests: bytes) -> NDArray[np.bool_]:
    """Return for each of N joined digests whether an equal one stands before it, shape (N,); NONE equals nothing."""
    halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equals the first stays the first
    sorted_halves = halves[order]
    repeated = np.zeros(len(halves), bool)
    repeated[order[1:]] = (sorted_halves[1:] == sorted_halves[:-1]).all(1) & sorted_halves[1:].any(1)
    return repeated
