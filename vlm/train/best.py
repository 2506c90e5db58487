"""What evaluations decide: which checkpoints are the best, when to stop, when to warn of over-fitting.

Everything follows from the evaluations in metrics.jsonl, so a run that was killed decides as an unbroken one.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.model.export import link_folder

RISES = 2  # evaluations in a row at which the held-out loss has risen


@dataclass(frozen=True)
class Look:
    """One evaluation."""

    step: int
    badness: float  # the less the better; infinite where the metric is no number
    held_out: float  # loss, nats for each target
    training: float | None  # mean of the losses logged since the look before; None without one


def looks_of(rows: Sequence[dict], metric: str, loss: str, *, less_is_better: bool) -> list[Look]:
    """Return the evaluations among the rows of a metrics.jsonl, in order; `metric` and `loss` are keys of theirs.

    Those without the metric were written before it was asked for, and do not count.
    """
    looks, since = [], []
    for row in rows:
        if row.get("kind") != "evaluation" and "loss" in row:
            since.append(row["loss"])
        if row.get("kind") != "evaluation" or metric not in row:
            continue
        badness = row[metric] if less_is_better else -row[metric]
        training = sum(since) / len(since) if since else None
        badness = badness if math.isfinite(badness) else math.inf
        looks.append(Look(row["step"], badness, row[loss], training))
        since = []
    return looks


def best_steps(looks: Sequence[Look], count: int) -> list[int]:
    """Return the steps of the `count` best evaluations, the best first; of equal ones the earlier is better."""
    return [look.step for look in sorted(looks, key=lambda look: (look.badness, look.step))[:count]]


def is_over(looks: Sequence[Look], patience: int | None) -> bool:
    """Say whether the last `patience` evaluations all were no better than one before them."""
    if patience is None or not looks:
        return False
    (best,) = best_steps(looks, 1)
    return sum(look.step > best for look in looks) >= patience


def over_fits(looks: Sequence[Look]) -> bool:
    """Say whether the held-out loss rose at the last RISES evaluations while the training loss fell."""
    last = looks[-RISES - 1 :]
    if len(last) <= RISES or last[0].training is None or last[-1].training is None:
        return False
    rises = all(before.held_out < after.held_out for before, after in zip(last[:-1], last[1:], strict=True))
    return rises and last[-1].training < last[0].training


def keep_best(checkpoints: Path, best: Path, steps: Sequence[int]) -> None:
    """Let `best` hold the checkpoints of these steps and no others; weights are linked, not copied.

    One that is in neither folder is passed over: it was damaged, or is about to be saved.
    """
    for step in steps:
        name = f"step_{step:06d}"
        if (checkpoints / name).is_dir() and not (best / name).is_dir():
            waiting = best / f"{name}.tmp"
            shutil.rmtree(waiting, ignore_errors=True)
            link_folder(checkpoints / name, waiting)
            waiting.rename(best / name)
    wanted = {f"step_{step:06d}" for step in steps}
    for old in best.glob("step_*"):
        if old.name not in wanted:
            shutil.rmtree(old)
