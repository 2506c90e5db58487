"""What a plan asks of its ranks, step by step: exact, from the index alone."""

import math
from dataclasses import dataclass, replace

from vlm.data.plan import Plan


@dataclass
class Workload:
    """What a plan holds, over all ranks; exact."""

    steps: int = 0
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


def workload(plan: Plan, ranks: int, rows_at_once: int, image_tokens: int) -> Workload:
    """Walk through every step of a plan as `ranks` ranks will."""
    tokens, images, targets = plan.tokens.tolist(), plan.images.tolist(), plan.targets.tolist()
    found = Workload(steps=plan.steps, samples=len(plan.order))
    positions = 0
    for step in range(plan.steps):
        packs = plan.packs(step, ranks)
        found.packs += sum(1 for pack in packs if pack)
        found.micro_batches = max(found.micro_batches, -(-len(packs) // ranks // rows_at_once))
        for rank in range(ranks):
            mine = packs[rank::ranks]
            for at in range(0, len(mine), rows_at_once):
                batch = mine[at : at + rows_at_once]
                length = max(1, *(sum(tokens[i] for i in pack) for pack in batch), 1)
                positions += len(batch) * length
                if len(batch) * length > found.rows * found.length:
                    found.rows, found.length = len(batch), length
                found.batch_images = max(found.batch_images, sum(images[i] for pack in batch for i in pack))
                found.batch_targets = max(found.batch_targets, sum(targets[i] for pack in batch for i in pack))
    order = plan.order
    found.images = int(plan.images[order].sum())
    found.tokens = int(plan.tokens[order].sum())
    found.image_tokens = found.images * image_tokens
    found.targets = int(plan.targets[order].sum())
    found.squares = int((plan.tokens[order] ** 2).sum())
    found.padding = 1 - found.tokens / max(positions, 1)
    return found


def workload_shape(work: Workload, rows: int) -> Workload:
    """Return a workload whose largest micro-batch has `rows` rows in place of its own."""
    share = rows / work.rows
    return replace(
        work,
        rows=rows,
        batch_images=round(work.batch_images * share),
        batch_targets=round(work.batch_targets * share),
        micro_batches=max(1, math.ceil(work.micro_batches / share)),
    )
