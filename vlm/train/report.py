"""What a training says of itself: a progress bar, metrics.jsonl, TensorBoard."""

import json
import math
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vlm import ranks
from vlm.train.checkpoint import Progress

METRICS = "metrics.jsonl"


class Report:
    """Writes on the first rank; silent on the others."""

    def __init__(self, folder: Path, name: str, steps: int, epoch: int, log_every: int, resumed: Progress) -> None:
        """Go on after `resumed`, with `epoch` samples an epoch: what was written of later steps is dropped, since they are done again."""
        self._log_every = log_every
        self._first = ranks.first()
        self._since = time.monotonic()
        self._tokens = resumed.tokens
        self._samples = resumed.samples
        self._steps = resumed.step
        self._waited = 0.0
        self._slots = 0
        self._epoch = epoch
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

    def step(self, progress: Progress, loss: float, grad_norm: float, lr: dict[str, float], slots: int) -> None:
        """Record a step; loss is nats for each target of the global batch, lr is by part.

        `slots` counts the tokens that were computed, with padding. A skipped step always has its line.
        """
        self._slots += slots
        if not self._first:
            return
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if progress.skipped_in_a_row:
            self._bar.write(f"step {progress.step} is skipped: loss {loss:.4g}, gradient norm {grad_norm:.4g}")
        elif progress.step % self._log_every and progress.step != self._bar.total:
            return
        seconds = time.monotonic() - self._since
        measured = {
            "epoch": progress.samples / self._epoch,
            "loss": loss if math.isfinite(loss) else None,
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
        }
        with self._path.open("a") as file:
            file.write(json.dumps({"step": progress.step, **measured}) + "\n")
        for key, value in ((key, value) for key, value in measured.items() if value is not None):
            self._board.add_scalar(key, value, progress.step)
        self._since, self._waited, self._slots = time.monotonic(), 0.0, 0
        self._tokens, self._samples, self._steps = progress.tokens, progress.samples, progress.step

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if self._first:
            self._bar.close()
            self._board.close()


def memory_peak() -> int:
    """Return the most bytes that the first rank has held: of its GPU if it has one, else of its process."""
    if ranks.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a file; an interrupted write may have torn the last."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]
