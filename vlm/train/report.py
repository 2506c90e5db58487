"""What a training says of itself: a progress bar, metrics.jsonl, TensorBoard."""

import json
import time
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vlm import ranks
from vlm.files import sync
from vlm.train.checkpoint import Progress

METRICS = "metrics.jsonl"


class Report:
    """Writes on the first rank; silent on the others."""

    def __init__(self, folder: Path, name: str, steps: int, log_every: int, resumed: Progress) -> None:
        """Go on after `resumed`: what was written of later steps is dropped, since they are done again."""
        self._log_every = log_every
        self._first = ranks.first()
        self._since = time.monotonic()
        self._tokens = resumed.tokens
        self._samples = resumed.samples
        self._steps = resumed.step
        self._waited = 0.0
        self._looked: dict[str, str] = {}
        if not self._first:
            return
        self._path = folder / METRICS
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= resumed.step]
        self._path.write_text("".join(line + "\n" for line in kept))
        self._board = SummaryWriter(folder / "tensorboard", purge_step=resumed.step + 1)
        self._bar = tqdm(total=steps, initial=resumed.step, desc=name, unit="step", dynamic_ncols=True)

    def wait(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def step(self, progress: Progress, loss: float, grad_norm: float, lr: dict[str, float]) -> None:
        """Record a step; loss is nats for each target of the global batch, lr is by part."""
        if not self._first:
            return
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.4f}", **self._looked, refresh=False)
        if progress.step % self._log_every and progress.step != self._bar.total:
            return
        seconds = time.monotonic() - self._since
        measured = {
            "loss": loss,
            "grad_norm": grad_norm,
            **{f"lr/{part}": rate for part, rate in lr.items()},
            "samples": progress.samples,
            "tokens": progress.tokens,
            "targets": progress.targets,
            "tokens_per_second": (progress.tokens - self._tokens) / seconds,
            "samples_per_second": (progress.samples - self._samples) / seconds,
            "seconds_per_step": seconds / max(1, progress.step - self._steps),
            "data_wait_share": self._waited / seconds,
        }
        with self._path.open("a") as file:
            file.write(json.dumps({"step": progress.step, **measured}) + "\n")
        for key, value in measured.items():
            self._board.add_scalar(key, value, progress.step)
        self._since, self._waited = time.monotonic(), 0.0
        self._tokens, self._samples, self._steps = progress.tokens, progress.samples, progress.step

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Record a look at held-out samples, in a row of its own kind; decisions rest on it, so it goes to disk.

        `figures` hold "held_out/loss" and the "seconds" that the look took.
        """
        if not self._first:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": "evaluation", **figures}) + "\n")
        sync(self._path)
        for key, value in figures.items():
            self._board.add_scalar(f"evaluation/{key}", value, step)
        self._since += figures["seconds"]  # the next step's speed is the training's own
        self._looked = {"held_out": f"{figures['held_out/loss']:.4f}"}

    def rows(self) -> list[dict]:
        """Return what is in metrics.jsonl so far; nothing on other ranks than the first."""
        return [json.loads(line) for line in _lines(self._path)] if self._first else []

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if self._first:
            self._bar.close()
            self._board.close()


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a file; an interrupted write may have torn the last."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]
