"""What a plan asks of its ranks, step by step: exact, from the index alone.

Packs are those of `Plan.packs`, made here for thousands of steps side by side, so that millions of samples take a second.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm.config import TrainConfig
from vlm.data.plan import Plan

STEPS_AT_ONCE = 4096
NO_ROOM = np.iinfo(np.int32).max


@dataclass
class Workload:
    """What a training computes, over all ranks; exact where there is a plan."""

    steps: int = 0  # 0: not known before there is an index
    samples: int = 0
    images: int = 0
    packs: int = 0
    micro_batches: int = 0  # of the rank and step that has most
    tokens: int = 0  # image tokens included, padding not
    image_tokens: int = 0
    targets: int = 0
    padding: float = 0.0  # share of the computed positions
    squares: int = 0  # sum over samples of tokens squared, which attention costs
    rows: int = 1  # of the largest micro-batch
    length: int = 1  # tokens of each of its rows
    batch_images: int = 0
    batch_targets: int = 0


@dataclass(frozen=True)
class Loads:
    """What the packs of some steps hold, all steps having equally many: shape (3, steps, packs)."""

    held: NDArray[np.int32]

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self.held[0]


def loads_of(plan: Plan, ranks: int) -> list[Loads]:
    """Return tokens, pictures and targets of every pack of a plan, in the order of `Plan.packs`."""
    each = plan.samples_per_step
    whole = len(plan.order) // each
    steps = plan.order[: whole * each].reshape(whole, each)
    blocks = [steps[at : at + STEPS_AT_ONCE] for at in range(0, whole, STEPS_AT_ONCE)]
    if whole * each < len(plan.order):
        blocks.append(plan.order[None, whole * each :])
    return [found for block in blocks for found in _loads(plan, block, ranks)]


def _loads(plan: Plan, samples: NDArray[np.int64], ranks: int) -> list[Loads]:
    """Return the packs of steps of equally many samples, shape (steps, samples)."""
    longest_first = np.argsort(samples - plan.tokens[samples] * len(plan.tokens), axis=1)
    samples = np.take_along_axis(samples, longest_first, axis=1)
    each = np.stack([counts[samples] for counts in (plan.tokens, plan.images, plan.targets)]).astype(np.int32)
    if not plan.packing:
        return [Loads(np.pad(each, ((0, 0), (0, 0), (0, -samples.shape[1] % ranks))))]
    sums = each.sum(axis=2, dtype=np.int64)
    fewest = np.maximum(-(-sums[0] // plan.pack_tokens), -(-sums[1] // plan.pack_images)).clip(1)
    counts = -(-fewest // ranks) * ranks
    found, left = [], np.arange(len(samples))
    while len(left):
        count = counts[left].min()
        chosen = left[counts[left] == count]
        held, fits = _spread(plan, each[:, chosen], int(count))
        if fits.any():
            found.append(Loads(held[:, fits]))
        counts[chosen[~fits]] += ranks
        left = np.setdiff1d(left, chosen[fits])
    return found


def _spread(plan: Plan, each: NDArray[np.int32], count: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Put each step's samples into the emptiest of `count` packs; return the packs, and for which steps they held."""
    _, steps, samples = each.shape
    at = np.arange(steps)
    tokens, images = np.zeros((steps, count), np.int32), np.zeros((steps, count), np.int32)
    limits_images = _most_images(plan) > plan.pack_images
    into = np.empty((samples, steps), np.int64)  # the pack of each sample
    for sample in range(samples):
        if limits_images:
            has_room = images + each[1, :, sample, None] <= plan.pack_images
            emptiest = np.where(has_room, tokens, NO_ROOM).argmin(axis=1)
            images[at, emptiest] += np.where(has_room[at, emptiest], each[1, :, sample], NO_ROOM // samples)
        else:
            emptiest = tokens.argmin(axis=1)
        tokens[at, emptiest] += each[0, :, sample]
        into[sample] = emptiest
    fits = (tokens.max(axis=1) <= plan.pack_tokens) & (images.max(axis=1) <= plan.pack_images)
    slots = (into + at * count).ravel()
    counted = [np.bincount(slots, one.T.ravel(), steps * count).reshape(steps, count) for one in each[1:]]
    return np.stack([tokens, *counted]).astype(np.int32), fits


def _most_images(plan: Plan) -> int:
    """Return how many pictures a full pack can hold, going by the sample with most pictures for its tokens."""
    shown = plan.images > 0
    return int(plan.pack_tokens // (plan.tokens[shown] / plan.images[shown]).min()) if shown.any() else 0


def workload(plan: Plan, loads: list[Loads], ranks: int, rows_at_once: int, image_tokens: int) -> Workload:
    """Return what `ranks` ranks compute of a plan whose packs are `loads`."""
    order = plan.order
    found = Workload(steps=plan.steps, samples=len(order))
    positions = 0
    for of_steps in loads:
        found.packs += int((of_steps.tokens > 0).sum())
        _, steps, packs = of_steps.held.shape
        mine = packs // ranks  # of one rank: every `ranks`-th
        held = of_steps.held.reshape(3, steps, mine, ranks).swapaxes(2, 3)
        batches = -(-mine // rows_at_once)
        held = np.pad(held, ((0, 0), (0, 0), (0, 0), (0, batches * rows_at_once - mine)))
        held = held.reshape(3, steps * ranks, batches, rows_at_once)
        rows = np.minimum(rows_at_once, mine - rows_at_once * np.arange(batches))  # of each micro-batch
        lengths = held[0].max(axis=2).clip(1)
        positions += int((lengths.astype(np.int64) * rows).sum())
        sums = held[1:].sum(axis=3)
        found.micro_batches = max(found.micro_batches, batches)
        found.batch_images = max(found.batch_images, int(sums[0].max()))
        found.batch_targets = max(found.batch_targets, int(sums[1].max()))
        largest = np.unravel_index((lengths * rows).argmax(), lengths.shape)
        if (shape := (int(rows[largest[1]]), int(lengths[largest])))[0] * shape[1] > found.rows * found.length:
            found.rows, found.length = shape
    found.images = int(plan.images[order].sum())
    found.tokens = int(plan.tokens[order].sum())
    found.image_tokens = found.images * image_tokens
    found.targets = int(plan.targets[order].sum())
    found.squares = int((plan.tokens[order] ** 2).sum())
    found.padding = 1 - found.tokens / max(positions, 1)
    return found


def largest_workload(cfg: TrainConfig, rows_at_once: int, max_tokens: int, image_tokens: int) -> Workload:
    """Return the largest micro-batch that the settings allow, where there is no index yet: full packs, all supervised."""
    length = cfg.pack_tokens if cfg.packing else min(max_tokens, cfg.pack_tokens)
    images = rows_at_once * max(1, min(cfg.pack_images, length // max(1, image_tokens)))
    return Workload(
        rows=rows_at_once,
        length=length,
        micro_batches=2,  # at least: gradients then wait beside activations
        batch_images=images,
        batch_targets=max(1, rows_at_once * length - images * image_tokens),
    )
