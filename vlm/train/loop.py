"""The training loop. One turn of it is one step, and one step is one update of the weights.

Words   step         one optimizer update, over all ranks
        micro-batch  what one rank computes at once; a step has as many on every rank
        target       a token the loss counts (the prompt, the padding and the picture are none)
Units   losses are nats for each target; times are seconds
"""

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm import ranks
from vlm.config import Schedule
from vlm.data.loader import Batch
from vlm.data.pixels import Preprocessing, normalise
from vlm.data.plan import Plan
from vlm.errors import Unusable
from vlm.train.checkpoint import Checkpoints, Progress
from vlm.train.engine import Engine, gradient_norm, shards_states
from vlm.train.report import Report
from vlm.train.stop import StopRequest

if TYPE_CHECKING:
    from vlm.train.evaluate import Evaluation  # it computes losses as this loop does


def fit(
    engine: Engine,
    batches: Iterator[list[Batch]],
    plan: Plan,
    progress: Progress,
    checkpoints: Checkpoints,
    report: Report,
    evaluation: "Evaluation",
    *,
    how: Preprocessing,
    seed: int,
    schedule: Schedule,
    warmup_ratio: float,
    save_every: int,
) -> Progress:
    """Train from where `progress` stands to the end of the plan, or until `evaluation` has seen enough.

    Raises Unusable when asked to stop, or when the loss is no number; the last checkpoint stands.
    """
    engine.train()
    with StopRequest() as stop:
        while progress.step < plan.steps and not evaluation.stopped:
            rates = set_learning_rates(engine, progress.step, plan.steps, schedule, warmup_ratio)
            waiting = time.monotonic()
            micro_batches = next(batches)
            report.wait(time.monotonic() - waiting)

            targets = plan.target_count(progress.step)
            torch.manual_seed(seed_of(seed, progress.step, ranks.rank()))  # dropout goes by the step alone
            loss, grad_norm = take_step(engine, micro_batches, targets, how)
            if not math.isfinite(loss):
                raise Unusable(
                    f"the loss is {loss} at step {progress.step + 1}: lower the learning rate; nothing was saved of it"
                )

            samples = plan.samples(progress.step)
            progress.step += 1
            progress.samples += len(samples)
            progress.tokens += int(plan.tokens[samples].sum())
            progress.targets += targets
            report.step(progress, loss, grad_norm, rates)
            wanted = evaluation.after(engine, progress.step)
            asked = stop.agreed(engine.device)
            if asked or wanted or progress.step % save_every == 0 or progress.step == plan.steps:
                checkpoints.save(engine, progress)
                evaluation.keep()
            if asked and progress.step < plan.steps and not evaluation.stopped:
                raise Unusable(f"asked to stop: saved at step {progress.step} of {plan.steps}; run it again to go on")
    return progress


def seed_of(seed: int, step: int, rank: int) -> int:
    """Return the seed of what is random in one rank's step, so that nothing about it need be saved."""
    return (seed * 1_000_003 + step) * 10_007 + rank


def take_step(engine: Engine, micro_batches: list[Batch], targets: int, how: Preprocessing) -> tuple[float, float]:
    """Update the weights once; return the loss over all ranks and the norm of its gradient.

    Each target weighs the same, in whichever micro-batch of whichever rank it falls. DeepSpeed averages over
    ranks as if they were equally long, so that divisor is multiplied back.
    """
    total = torch.zeros((), device=engine.device)
    for i, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
        nats = nats_of(engine, batch.to(engine.device), how)
        engine.backward(nats * (ranks.world() / targets))
        total += nats.detach()
    norm = None if shards_states(engine) else gradient_norm(engine)
    engine.step()
    norm = float(engine.get_global_grad_norm()) if norm is None else norm
    return ranks.sum_over_ranks(total).item() / targets, norm


def nats_of(model: torch.nn.Module, batch: Batch, how: Preprocessing) -> Tensor:
    """Return the summed loss of a batch, shape ()."""
    dtype = next(model.parameters()).dtype
    pixel_values = normalise(batch.pixel_values, how, dtype)
    return model(batch.input_ids, batch.labels, batch.position_ids, pixel_values)


def set_learning_rates(
    engine: Engine, step: int, steps: int, schedule: Schedule, warmup_ratio: float
) -> dict[str, float]:
    """Set the rate of every group for a step (0-based); return it by part."""
    factor = rate_factor(step, steps, schedule, warmup_ratio)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return {group["part"]: group["lr"] for group in engine.optimizer.param_groups}


def rate_factor(step: int, steps: int, schedule: Schedule, warmup_ratio: float) -> float:
    """Return the share of the peak rate at a step: up a line during the warm-up, then as the schedule says."""
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {
        Schedule.constant: 1.0,
        Schedule.linear: 1 - done,
        Schedule.cosine: (1 + math.cos(math.pi * done)) / 2,
    }[schedule]
