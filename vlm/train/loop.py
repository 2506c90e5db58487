"""The training loop. One turn of it is one step, and one step is one update of the weights.

Words   step         one optimizer update, over all ranks
        micro-batch  what one rank computes at once; a step has as many on every rank
        target       a token the loss counts (the prompt, the padding and the picture are none)
Units   losses are nats for each target; times are seconds
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm import ranks
from vlm.config import Schedule
from vlm.data.loader import Batch
from vlm.data.pixels import Preprocessing, normalise
from vlm.data.plan import Plan
from vlm.errors import Stopped, Unusable
from vlm.train.checkpoint import Checkpoints, Progress
from vlm.train.engine import Engine, gradient_norm, shards_states, update
from vlm.train.report import Report
from vlm.train.stop import StopRequest
from vlm.train.watchdog import Watchdog

if TYPE_CHECKING:
    from vlm.train.evaluate import Evaluation  # it computes losses as this loop does


@dataclass(frozen=True)
class Rules:
    """What the settings say of the steps."""

    seed: int
    schedule: Schedule
    warmup: int  # steps
    skip_above: float | None  # skip a step whose loss is over this many times the usual one
    max_skipped: int  # steps in a row
    watchdog_minutes: float | None

    def limit(self, usual_loss: float) -> float | None:
        """Return the loss above which a step is skipped; None if none is, or no loss is usual (0) yet."""
        return usual_loss * self.skip_above if self.skip_above and usual_loss else None


def fit(
    engine: Engine,
    batches: Iterator[list[Batch]],
    plan: Plan,
    progress: Progress,
    checkpoints: Checkpoints,
    report: Report,
    evaluation: "Evaluation",
    how: Preprocessing,
    rules: Rules,
) -> Progress:
    """Train from where `progress` stands to the end of the plan, or until `evaluation` has seen enough.

    A step is skipped where its gradient is no number or its loss is over the rules' limit.
    Raises Stopped when asked to stop, Unusable after too many skipped steps in a row; the last checkpoint stands.
    """
    engine.train()
    with StopRequest() as stop, Watchdog(rules.watchdog_minutes) as watchdog, checkpoints:
        while progress.step < plan.steps and not evaluation.stopped:
            rates = set_learning_rates(engine, progress.step, plan.steps, rules)
            waiting = time.monotonic()
            micro_batches = next(batches)
            report.wait(time.monotonic() - waiting)

            targets = plan.target_count(progress.step)
            torch.manual_seed(seed_of(rules.seed, progress.step, ranks.rank()))  # dropout goes by the step alone
            step = take_step(engine, micro_batches, targets, how, rules.limit(progress.usual_loss))

            account(step, rates, plan, progress, report)
            watchdog.beat()
            if progress.skipped_in_a_row >= rules.max_skipped:
                raise Unusable(
                    f"{rules.max_skipped} steps in a row were skipped up to step {progress.step} (loss {step.loss:.4g}, "
                    f"gradient norm {step.grad_norm:.4g}): lower the learning rate; nothing was saved of them"
                )
            wanted = evaluation.after(engine, progress.step)
            watchdog.beat()
            asked, due = stop.agreed(engine.device, also=checkpoints.due(progress.step))
            must_stand = asked or wanted or progress.step == plan.steps
            if due or must_stand:
                checkpoints.save(engine, progress)
            if must_stand:
                checkpoints.settle(engine)
                evaluation.keep()
            if asked and progress.step < plan.steps and not evaluation.stopped:
                raise Stopped(f"asked to stop: saved at step {progress.step} of {plan.steps}; run it again to go on")
    return progress


def seed_of(seed: int, step: int, rank: int) -> int:
    """Return the seed of what is random in one rank's step, so that nothing about it need be saved."""
    return (seed * 1_000_003 + step) * 10_007 + rank


@dataclass(frozen=True)
class Step:
    """What came of a step."""

    loss: float  # nats for each target, over all ranks
    nats: list[float]  # of each source
    grad_norm: float  # before clipping, over all ranks
    slots: int  # tokens computed on all ranks, padding too
    updated: bool  # false: skipped, on all ranks alike


def account(step: Step, rates: dict[str, float], plan: Plan, progress: Progress, report: Report) -> None:
    """Count a step that was taken, and report it."""
    samples, targets = plan.samples(progress.step), plan.target_count(progress.step)
    of_source = plan.target_counts(progress.step, len(step.nats))
    by_source = [nats / count if count else None for nats, count in zip(step.nats, of_source, strict=True)]
    tokens, images = (int(counts[samples].sum()) for counts in (plan.tokens, plan.images))
    progress.count(len(samples), tokens, targets, images, step.loss if step.updated else None)
    report.step(progress, step.loss, step.grad_norm, rates, step.slots, by_source)


def take_step(
    engine: Engine, micro_batches: list[Batch], targets: int, how: Preprocessing, limit: float | None
) -> Step:
    """Update the weights once, unless the gradient is no number or the loss is over `limit`.

    Each target weighs the same, in whichever micro-batch of whichever rank it falls. DeepSpeed averages over
    ranks as if they were equally long, so that divisor is multiplied back.
    """
    slots, totals = sum(batch.input_ids.numel() for batch in micro_batches), 0.0
    scale = ranks.world() / targets
    for i, batch in enumerate(micro_batches):
        is_last = i == len(micro_batches) - 1
        engine.set_gradient_accumulation_boundary(is_last)
        nats = nats_of(engine, batch, engine.device, how)
        totals += nats.detach()
        if is_last and limit is not None and float(ranks.sum_over_ranks(totals.sum())) / targets > limit:
            scale = math.nan  # the gradient then is no number: every ZeRO stage skips the step and cleans up
        engine.backward(nats.sum() * scale)
    norm, updated = update(engine, None if shards_states(engine) else gradient_norm(engine))
    *nats, slots = ranks.sum_over_ranks(torch.cat([totals, totals.new_tensor([slots])])).tolist()
    return Step(sum(nats) / targets, nats, norm, int(slots), updated)


def nats_of(model: torch.nn.Module, batch: Batch, device: torch.device, how: Preprocessing) -> Tensor:
    """Return the summed loss of a batch, nats, for each source (S,)."""
    dtype = next(model.parameters()).dtype
    pixel_values = normalise(batch.pixel_values.to(device, non_blocking=True), how, dtype)
    return model(batch.input_ids, batch.labels, batch.position_ids, pixel_values, batch.sources, batch.source_count)


def set_learning_rates(engine: Engine, step: int, steps: int, rules: Rules) -> dict[str, float]:
    """Set the rate of every group for a step (0-based); return it by part."""
    factor = rate_factor(step, steps, rules.schedule, rules.warmup)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return {group["part"]: group["lr"] for group in engine.optimizer.param_groups}


def rate_factor(step: int, steps: int, schedule: Schedule, warmup: int) -> float:
    """Return the share of the peak rate at a step: up a line for `warmup` steps, then as the schedule says."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {
        Schedule.constant: 1.0,
        Schedule.linear: 1 - done,
        Schedule.cosine: (1 + math.cos(math.pi * done)) / 2,
    }[schedule]
