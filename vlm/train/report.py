"""What a training says of itself: a progress bar, metrics.jsonl, TensorBoard."""

import hashlib
import json
import math
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vlm import ranks
from vlm.config import TrainRuntime
from vlm.errors import Unusable
from vlm.files import sync
from vlm.train.checkpoint import Progress
from vlm.train.curve import draw_loss
from vlm.train.flops import Cost, peak_flops

METRICS = "metrics.jsonl"


class Report:
    """Writes on the first rank; silent on the others."""

    def __init__(
        self,
        folder: Path,
        name: str,
        steps: int,
        epoch: int,
        runtime: TrainRuntime,
        resumed: Progress,
        cost: Cost,
        sources: Sequence[str] = (),
    ) -> None:
        """Go on after `resumed`, with `epoch` samples an epoch and arithmetic of `cost`, over these `sources`.

        What was written of later steps is dropped, since they are done again.
        """
        self._log_every = runtime.log_every
        self._cost = cost
        self._sources = sources
        self._peak = peak_flops(ranks.device(), runtime.peak_tflops)
        self._targets = resumed.targets
        self._images = resumed.images
        self._first = ranks.first()
        self._since = time.monotonic()
        self._tokens = resumed.tokens
        self._samples = resumed.samples
        self._steps = resumed.step
        self._waited = 0.0
        self._looked: dict[str, str] = {}
        self._slots = 0
        self._epoch = epoch
        if not self._first:
            return
        self._wandb = start_wandb(folder, name) if runtime.wandb else None
        self._path = folder / METRICS
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= resumed.step]
        self._path.write_text("".join(line + "\n" for line in kept))
        self._board = SummaryWriter(folder / "tensorboard", purge_step=resumed.step + 1)
        self._bar = tqdm(total=steps, initial=resumed.step, desc=name, unit="step", dynamic_ncols=True)

    def wait(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def step(
        self,
        progress: Progress,
        loss: float,
        grad_norm: float,
        lr: dict[str, float],
        slots: int,
        by_source: Sequence[float | None] = (),
    ) -> None:
        """Record a step; loss is nats for each target of the global batch, lr is by part.

        `by_source` holds the loss of each source, None where the batch has no target of it. `slots` counts the tokens that were computed, with padding. A skipped step always has its line.
        """
        self._slots += slots
        if not self._first:
            return
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.4f}", **self._looked, refresh=False)
        if progress.skipped_in_a_row:
            self._bar.write(f"step {progress.step} is skipped: loss {loss:.4g}, gradient norm {grad_norm:.4g}")
        elif progress.step % self._log_every and progress.step != self._bar.total:
            return
        seconds = time.monotonic() - self._since
        measured = {
            "epoch": progress.samples / self._epoch,
            "loss": loss if math.isfinite(loss) else None,
            **self._by_source(by_source),
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "skipped": progress.skipped,
            **{f"lr/{part}": rate for part, rate in lr.items()},
            "samples": progress.samples,
            "tokens": progress.tokens,
            "targets": progress.targets,
            "padding_share": 1 - (progress.tokens - self._tokens) / max(1, self._slots),
            "memory_bytes": memory_peak(),
            "tokens_per_second": (progress.tokens - self._tokens) / seconds,
            "samples_per_second": (progress.samples - self._samples) / seconds,
            "seconds_per_step": seconds / max(1, progress.step - self._steps),
            "data_wait_share": self._waited / seconds,
            **self._arithmetic(progress, seconds),
        }
        self._append({"step": progress.step, **measured})
        for key, value in ((key, value) for key, value in measured.items() if value is not None):
            self._board.add_scalar(key, value, progress.step)
        self._since, self._waited, self._slots = time.monotonic(), 0.0, 0
        if self._wandb:
            self._wandb.log(measured, step=progress.step)
        self._tokens, self._samples, self._steps = progress.tokens, progress.samples, progress.step
        self._targets, self._images = progress.targets, progress.images

    def _append(self, row: dict) -> None:
        """Write a row of metrics.jsonl; raises Unusable if the disk does not take it."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as problem:
            raise Unusable(
                f"cannot write {self._path} ({problem}): free some space; the last checkpoint stands"
            ) from None

    def _by_source(self, losses: Sequence[float | None]) -> dict[str, float]:
        """Return the losses by the names of their sources."""
        named = zip(self._sources, losses, strict=False)
        return {f"loss/{name}": loss for name, loss in named if loss is not None and math.isfinite(loss)}

    def _arithmetic(self, progress: Progress, seconds: float) -> dict[str, float]:
        """Return operations a second on all ranks, and MFU (vlm/train/flops.py) where the peak is known."""
        done = self._cost.of_step(
            progress.tokens - self._tokens, progress.targets - self._targets, progress.images - self._images
        )
        rate = done / seconds
        return {"tflops": rate / 1e12} | ({"mfu": rate / (self._peak * ranks.world())} if self._peak else {})

    def draw(self) -> None:
        """Draw loss.png of all that was written."""
        if self._first:
            rows = [json.loads(line) for line in _lines(self._path)]
            training, held_out = (
                [(row["step"], row[key]) for row in rows if row.get(key) is not None]
                for key in ("loss", "held_out/loss")
            )
            if training:
                draw_loss(self._path.with_name("loss.png"), training, held_out)

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Record a look at held-out samples, in a row of its own kind; decisions rest on it, so it goes to disk.

        `figures` hold "held_out/loss" and the "seconds" that the look took.
        """
        if not self._first:
            return
        self._append({"step": step, "kind": "evaluation", **figures})
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
            with suppress(OSError):  # a full disk has its own line by then
                self._board.close()
            if self._wandb:
                self._wandb.finish()


def start_wandb(folder: Path, name: str) -> object:
    """Begin or go on with the Weights & Biases run of a training."""
    import wandb  # optional; `train` has seen that it is there

    run = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return wandb.init(project="vlm", name=f"{folder.parent.name}/{name}", id=run, resume="allow", dir=folder)


def memory_peak() -> int:
    """Return the most bytes that the first rank has held: of its GPU if it has one, else of its process."""
    if ranks.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    if (found := _status("VmHWM")) is not None:
        return found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_now() -> int:
    """Return the bytes that the first rank holds now, counted as `memory_peak` does; 0 where that is not known."""
    if ranks.device().type == "cuda":
        return torch.cuda.memory_allocated()
    return _status("VmRSS") or 0


def _status(name: str) -> int | None:
    """Return a size of this process alone from Linux's /proc, bytes; getrusage counts what its parent held, too."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a file; an interrupted write may have torn the last."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]
