"""The plan of a training: which samples make up each step, and which packs they travel in.

Everything follows from the index, the seed and a few numbers, so the position of a run is the number of steps it
has taken. The samples of a step are the same for any number of ranks; only how they are packed depends on it.
"""

import hashlib
import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm.errors import Unusable

CHUNK = 2**14  # rows at once, so that they stay in the processor's cache
MIX_1, MIX_2, GOLDEN = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Plan:
    """The samples of every step, and what a pack may hold."""

    order: NDArray[np.int64]  # sample numbers, epoch after epoch
    samples_per_step: int
    tokens: NDArray[np.int64]  # of every sample of the split
    images: NDArray[np.int64]
    targets: NDArray[np.int64]
    sources: NDArray[np.int64]  # into the split's list of them
    pack_tokens: int
    pack_images: int
    packing: bool

    @property
    def steps(self) -> int:
        """Optimizer updates in all; the last one may hold fewer samples."""
        return math.ceil(len(self.order) / self.samples_per_step)

    @property
    def fingerprint(self) -> str:
        """Hash of the samples of every step."""
        return self.fingerprint_until(self.steps)

    def fingerprint_until(self, step: int) -> str:
        """Hash of the samples of the first `step` steps, which longer plans share."""
        digest = hashlib.sha256(self.order[: step * self.samples_per_step].astype("<i8").tobytes())
        digest.update(str(self.samples_per_step).encode())
        return digest.hexdigest()

    def samples(self, step: int) -> NDArray[np.int64]:
        """Return the sample numbers of a step (0-based)."""
        return self.order[step * self.samples_per_step : (step + 1) * self.samples_per_step]

    def target_count(self, step: int) -> int:
        """Return the number of supervised tokens of a step's global batch."""
        return int(self.targets[self.samples(step)].sum())

    def target_counts(self, step: int, sources: int) -> NDArray[np.int64]:
        """Return those of each of so many sources, shape (sources,)."""
        here = self.samples(step)
        counts = np.zeros(sources, np.int64)
        np.add.at(counts, self.sources[here], self.targets[here])
        return counts

    def packs(self, step: int, ranks: int) -> list[list[int]]:
        """Return the packs of a step, a multiple of `ranks` of them and about equally full; some may be empty."""
        samples = self.samples(step).tolist()
        if not self.packing:
            rows = [[sample] for sample in sorted(samples, key=lambda i: (-self.tokens[i], i))]
            return rows + [[] for _ in range(-len(rows) % ranks)]
        fewest = max(
            math.ceil(self.tokens[samples].sum() / self.pack_tokens),
            math.ceil(self.images[samples].sum() / self.pack_images),
            1,
        )
        count = math.ceil(fewest / ranks) * ranks
        while (packed := self._spread(samples, count)) is None:
            count += ranks
        return packed

    def share(self, step: int, rank: int, ranks: int, rows_at_once: int) -> list[list[list[int]]]:
        """Return the micro-batches of one rank in a step: lists of packs, as many on every rank."""
        packs = self.packs(step, ranks)[rank::ranks]
        return [packs[i : i + rows_at_once] for i in range(0, len(packs), rows_at_once)]

    def _spread(self, samples: list[int], count: int) -> list[list[int]] | None:
        """Put the longest samples first into the emptiest of `count` packs; None if one does not fit."""
        emptiest = [(0, pack) for pack in range(count)]
        pictures = [0] * count
        packs: list[list[int]] = [[] for _ in range(count)]
        for sample in sorted(samples, key=lambda i: (-self.tokens[i], i)):
            full = []
            while emptiest:
                load, pack = heapq.heappop(emptiest)
                if load + self.tokens[sample] > self.pack_tokens:
                    return None  # it does not fit the emptiest pack with room for its pictures
                if pictures[pack] + self.images[sample] <= self.pack_images:
                    break
                full.append((load, pack))
            else:
                return None
            packs[pack].append(sample)
            pictures[pack] += int(self.images[sample])
            heapq.heappush(emptiest, (load + int(self.tokens[sample]), pack))
            for entry in full:
                heapq.heappush(emptiest, entry)
        return packs


def make_plan(
    rows: NDArray,
    seed: int,
    *,
    epochs: float,
    steps: int | None,
    samples_per_step: int,
    pack_tokens: int,
    pack_images: int,
    packing: bool,
    shards_at_once: int | None = None,
) -> Plan:
    """Plan a training over an index (vlm/data/index.py's rows), for `epochs` or, if given, for `steps`.

    With `shards_at_once`, samples come out of so many shards at a time, which a slow disk reads one after the other.
    Raises Unusable if a sample does not fit into a pack.
    """
    tokens, images, targets, sources = _columns(rows, "tokens", "images", "targets", "source")
    longest, most = int(tokens.max()), int(images.max())
    if longest > pack_tokens or most > pack_images:
        raise Unusable(
            f"a pack of pack_tokens={pack_tokens} and pack_images={pack_images} cannot hold the largest sample "
            f"({longest} tokens, {most} pictures): raise them, or lower data.max_tokens"
        )
    wanted = round(epochs * len(rows)) if steps is None else steps * samples_per_step
    if wanted < 1:
        raise Unusable(f"epochs={epochs} of {len(rows)} samples leave nothing to train on")
    shards = rows["shard"] if shards_at_once else None
    epochs_begun = range(math.ceil(wanted / len(rows)))
    order = np.concatenate([epoch_order(seed, e, len(rows), shards, shards_at_once or 1) for e in epochs_begun])
    return Plan(order[:wanted], samples_per_step, tokens, images, targets, sources, pack_tokens, pack_images, packing)


def _columns(rows: NDArray, *names: str) -> list[NDArray[np.int64]]:
    """Return columns of the index out of the mapped file; all together, because a row's fields lie side by side in it."""
    fields = [np.asarray(rows)[name] for name in names]
    columns = [np.empty(len(rows), np.int64) for _ in names]
    for at in range(0, len(rows), CHUNK):
        for column, field in zip(columns, fields, strict=True):
            column[at : at + CHUNK] = field[at : at + CHUNK]
    return columns


def epoch_order(
    seed: int, epoch: int, samples: int, shards: NDArray | None = None, at_once: int = 1
) -> NDArray[np.int64]:
    """Return the order of an epoch, shape (samples,): argsort of splitmix64 over (seed, epoch, i).

    With the `shards` of the samples, shards are ordered so first, and samples within each `at_once` of them. The hash is written out here because library generators may change between versions.
    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    with np.errstate(over="ignore"):
        start = _splitmix64(_splitmix64(np.array([seed], np.uint64)) + np.uint64(epoch))
        keys = np.arange(samples, dtype=np.uint64)
        for at in range(0, samples, CHUNK):
            keys[at : at + CHUNK] = _splitmix64(start + keys[at : at + CHUNK] * GOLDEN)
    if shards is None:
        return _argsort(keys)
    place = np.argsort(epoch_order(seed, epoch, int(shards.max()) + 1))  # of each shard
    return np.lexsort((keys, place[shards] // at_once))


def _argsort(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return np.argsort(keys, kind="stable") in a third of its time: numpy orders 16 bits by radix, and what is nearly
    in order soon.
    """
    roughly = np.argsort((keys >> np.uint64(48)).astype(np.uint16), kind="stable")
    return roughly[np.argsort(keys[roughly], kind="stable")]


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = values + GOLDEN
    mixed ^= mixed >> np.uint64(30)
    mixed *= MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= MIX_2
    mixed ^= mixed >> np.uint64(31)
    return mixed
