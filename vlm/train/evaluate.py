"""Evaluation while training: the loss of held-out samples, and answers to a few questions.

It looks and does not touch: no gradient, dropout off, the random state as before. So the weights are those of a
training without it, unless patience ends the training early.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from vlm import ranks
from vlm.config import EvaluationConfig
from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.data.loader import Steps, load_steps
from vlm.data.pixels import Preprocessing
from vlm.data.plan import Plan
from vlm.train.best import best_steps, is_over, keep_best, looks_of, over_fits
from vlm.train.engine import Engine
from vlm.train.loop import nats_of
from vlm.train.report import Report

LOSS = "held_out/loss"
BEST, CHOSEN = "best", "best/chosen"

Ask = Callable[[LlavaForConditionalGeneration, int], dict[str, float]]
"""From a model and the step to figures, among them <task>/accuracy; every rank calls, with the same model."""


class HeldOut:
    """The held-out samples that are looked at, source by source."""

    def __init__(
        self, split: Split, plan: Plan, chat: Chat, how: Preprocessing, *, rows_at_once: int, workers: int
    ) -> None:
        """Take the samples of `plan`, one pass over the split or a part of it."""
        source_of = split.rows["source"][plan.order]
        self.plans = {
            split.manifest["sources"][number]: replace(plan, order=plan.order[source_of == number])
            for number in np.unique(source_of)
        }
        self.steps = {
            source: Steps(split, part, chat, how, rank=ranks.rank(), ranks=ranks.world(), rows_at_once=rows_at_once)
            for source, part in self.plans.items()
        }
        self.how = how
        self.workers = workers

    def loss(self, engine: Engine) -> dict[str, float]:
        """Return the loss over all ranks, nats for each target, and that of each source if there are several.

        The plan gives every rank as many micro-batches, which ZeRO-3 needs.
        """
        nats = {source: self._nats(engine, steps) for source, steps in self.steps.items()}
        targets = {source: int(plan.targets[plan.order].sum()) for source, plan in self.plans.items()}
        figures = {LOSS: sum(nats.values()) / sum(targets.values())}
        if len(nats) > 1:
            figures |= {f"{LOSS}/{source}": nats[source] / targets[source] for source in nats}
        return figures

    def _nats(self, engine: Engine, steps: Steps) -> float:
        total = torch.zeros((), dtype=torch.float64, device=engine.device)
        for micro_batches in load_steps(steps, 0, self.workers):
            for batch in micro_batches:
                total += nats_of(engine, batch, engine.device, self.how).sum()
        return ranks.sum_over_ranks(total).item()


class Evaluation:
    """Looks at the model when a look is due, and says what follows from it."""

    def __init__(
        self, cfg: EvaluationConfig, held_out: HeldOut | None, ask: Ask | None, plan: Plan, report: Report, out: Path
    ) -> None:
        """Go on after the evaluations that `report` kept; without `held_out` no look is ever due."""
        self.cfg = cfg
        self.held_out = held_out
        self.ask = ask
        self.plan = plan
        self.report = report
        self.out = out
        self.metric = LOSS if cfg.metric == "loss" else f"{cfg.metric}/accuracy"
        self.stopped = self._agreed(is_over(self._looks(), cfg.patience))
        self.keep()  # the run may have been killed between a checkpoint and this

    def is_due(self, step: int) -> bool:
        """Say whether to look after a step, as it stands on the settings: every so often, by epoch, at the end."""
        if self.held_out is None:
            return False
        samples, a_step = len(self.plan.tokens), self.plan.samples_per_step
        ends_epoch = self.cfg.each_epoch and step * a_step // samples > (step - 1) * a_step // samples
        by_steps = self.cfg.every is not None and step % self.cfg.every == 0
        return by_steps or ends_epoch or step == self.plan.steps

    def after(self, engine: Engine, step: int) -> bool:
        """Look if it is due; return whether this step's checkpoint is wanted. Every rank must call."""
        if not self.is_due(step):
            return False
        began = time.monotonic()
        with looking(engine):
            figures = self.held_out.loss(engine)
            if self.ask is not None:
                figures |= self.ask(engine.module.llava, step)
        self.report.evaluation(step, {**figures, "seconds": time.monotonic() - began})
        looks = self._looks()
        self.stopped = self._agreed(is_over(looks, self.cfg.patience))
        is_best = self._agreed(step in best_steps(looks, self.cfg.keep_best))
        if ranks.first():
            self._say(looks)
        return is_best or self.stopped

    def keep(self) -> None:
        """Keep the checkpoints of the best steps; call when one was saved."""
        if ranks.first() and self.cfg.keep_best and self.held_out is not None:
            keep_best(self.out / "checkpoints", self.out / BEST, best_steps(self._looks(), self.cfg.keep_best))

    def only_best(self) -> Path | None:
        """Return a folder with the best step's checkpoint alone, from which to export; None without patience."""
        if self.cfg.patience is None:
            return None
        if ranks.first():
            keep_best(self.out / BEST, self.out / CHOSEN, best_steps(self._looks(), 1))
        ranks.barrier()
        return self.out / CHOSEN

    def figures(self) -> dict[str, Any]:
        """Return the headline figures of the first rank: the last look, and which was the best."""
        rows = [row for row in self.report.rows() if row.get("kind") == "evaluation"]
        if not rows:
            return {}
        last = {key: value for key, value in rows[-1].items() if key not in ("step", "kind", "seconds")}
        return {**last, "best_step": best_steps(self._looks(), 1)[0], "stopped_early": self.stopped}

    def _looks(self) -> list:
        return looks_of(self.report.rows(), self.metric, LOSS, less_is_better=self.metric == LOSS)

    def _agreed(self, decision: bool) -> bool:
        """Return the first rank's decision on every rank."""
        return bool(ranks.sum_over_ranks(torch.tensor(int(decision and ranks.first()), device=ranks.device())))

    def _say(self, looks: list) -> None:
        last, (best,) = looks[-1], best_steps(looks, 1)
        if over_fits(looks):
            tqdm.write(
                f"warning: up to step {last.step} the held-out loss rose to {last.held_out:.4f} while the training "
                f"loss fell to {last.training:.4f}: the model learns its samples by heart; step {best} is the best"
            )
        if self.stopped:
            tqdm.write(f"stopped early at step {last.step}: {self.cfg.patience} looks no better than step {best}'s")


@contextmanager
def looking(engine: Engine) -> Iterator[None]:
    """Have no gradients and no dropout, and leave modules and random state as they were."""
    device = engine.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        engine.eval()
        try:
            yield
        finally:
            engine.train()
