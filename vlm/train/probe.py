"""Before the first step: do samples of a pack see each other? Asked of the real model, with two real samples.

A library that changes how it hands attention its arguments breaks isolation without an error, and the loss hardly
shows it.
The hidden states do: those of the second sample of a pack must be those it has alone.
"""

import torch

from vlm.data.loader import Steps
from vlm.data.pixels import normalise
from vlm.data.plan import Plan
from vlm.errors import Unusable
from vlm.train.engine import Engine
from vlm.train.evaluate import looking

LOOKED_AT = 64  # samples of the first step, from which the pair is taken
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of the states' norm: rounding gives 1e-6 and 1e-2


def check_isolation(engine: Engine, steps: Steps) -> float | None:
    """Compare a pack of two samples with the samples alone; return how much the second one's states differ.

    The difference is a share of their norm; None if no two samples travel together. Every rank must call.
    Raises Unusable if the difference is more than rounding.
    """
    pair = pair_of(steps.plan)
    if pair is None:
        return None
    first, second = pair
    with looking(engine):
        together = _states(engine, steps, [first, second])[-int(steps.plan.tokens[second]) :]
        alone = _states(engine, steps, [second])
    found = float((together - alone).norm() / alone.norm())
    allowed = TOLERANCE[next(engine.module.parameters()).dtype]
    if not found <= allowed:
        raise Unusable(
            f"samples of a pack see each other: the hidden states of sample {second} change by {found:.2g} of their norm "
            f"behind sample {first}, where {allowed:.0e} is rounding; use packing=false, and the pinned transformers"
        )
    return found


def pair_of(plan: Plan) -> tuple[int, int] | None:
    """Return the two shortest samples near the beginning that fit into one pack, with pictures if there are such."""
    if not plan.packing:
        return None
    near = sorted(plan.samples(0)[:LOOKED_AT].tolist(), key=lambda i: (plan.images[i] == 0, plan.tokens[i], i))
    if len(near) < 2:
        return None
    first, second = near[:2]
    fits = (
        plan.tokens[[first, second]].sum() <= plan.pack_tokens
        and plan.images[[first, second]].sum() <= plan.pack_images
    )
    return (first, second) if fits and first != second else None


def _states(engine: Engine, steps: Steps, samples: list[int]) -> torch.Tensor:
    """Return the last hidden states of one row of samples, float32 (tokens, width)."""
    batch = steps.batch([samples])
    pixel_values = normalise(batch.pixel_values.to(engine.device), steps.how, next(engine.module.parameters()).dtype)
    return engine.module.hidden_states(batch.input_ids, batch.position_ids, pixel_values)[0].float()
