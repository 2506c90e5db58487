"""Contestants that take turns, each in a process of its own that waits while the others work.

The parent starts a `Contestant` and gives it turns; the child calls `Turns`. A turn ends with an optimizer step, so any
framework can be a contestant: PyTorch tells of every step of every optimizer. A child that fails ends the contestant,
with the last line that it wrote as the reason.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20
STATUS = Path("/proc/self/status")
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc else keeps what was freed; slow, so not while timing


class Failed(Exception):
    """A contestant ended before its time; the message is the last line it wrote."""


class Contestant:
    """The parent's end of a child."""

    def __init__(self, name: str, command: Sequence[str], log: Path, **environment: str) -> None:
        self.name = name
        self.log = log
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        there = {"TURNS_READ": str(read), "TURNS_WRITE": str(write), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        there |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(Path(__file__).parents[1])}
        with log.open("w") as out:
            self._process = subprocess.Popen(
                command,
                pass_fds=(read, write),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | there | environment,
                start_new_session=True,
            )
        os.close(read)
        os.close(write)
        self._answers = os.fdopen(self._from)

    def wait(self) -> dict[str, Any]:
        """Return what the child says next. Raises: Failed if it ends instead."""
        line = self._answers.readline()
        if line:
            return json.loads(line)
        self.kill()
        raise Failed(self.reason())

    def turn(self) -> dict[str, Any]:
        """Let the child go on until it says something; return that."""
        try:
            os.write(self._to, b"\n")
        except BrokenPipeError:
            raise Failed(self.reason()) from None
        return self.wait()

    def reason(self) -> str:
        """Return the last line that the child wrote, and where all of it is."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if "Error" in line or line.startswith("error")]
        return ((told or lines or ["it wrote nothing"])[-1])[:200]

    def kill(self) -> None:
        """End the child and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Turns:
    """The child's end."""

    def __init__(self) -> None:
        self._go = os.fdopen(int(os.environ["TURNS_READ"]))
        self._say = os.fdopen(int(os.environ["TURNS_WRITE"]), "w")
        self._start = time.perf_counter()
        self._held = 0

    def begin(self) -> None:
        """Wait for the first turn. Call it after the imports, before anything is loaded."""
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook

        torch.nn.functional.linear(torch.randn(512, 512), torch.randn(512, 512))  # the library's own buffers
        register_optimizer_step_post_hook(lambda *_: self._stepped())
        self._held = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self._tell({"ready": True})
        self._await()

    def end(self, **figures: object) -> None:
        """Hand over what came of it all."""
        self._tell({"peak_mib": self.peak(), **figures})

    def peak(self) -> float:
        """Return the highest memory since `begin`, above what was held then, MiB: of the GPU if there is one."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / MIB
        return (_status("VmHWM") - self._held) / MIB

    def _stepped(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._tell({"seconds": time.perf_counter() - self._start, "peak_mib": self.peak()})
        self._await()

    def _tell(self, figures: dict[str, object]) -> None:
        print(json.dumps(figures), file=self._say, flush=True)

    def _await(self) -> None:
        if not self._go.readline():
            os._exit(1)  # the parent is gone
        self._start = time.perf_counter()


@dataclass
class Trained:
    """What a `Trainer` leaves: its losses and, at the end of its training, the model."""

    losses: list[float] = field(default_factory=list)
    model: Any = None

    def save(self, folder: Path | str) -> None:
        """Write the model as a plain folder of transformers, its adapters merged; whoever trained it is done with it."""
        self.model.merge_and_unload().save_pretrained(folder)


def watch_transformers() -> Trained:
    """Return what every `Trainer` made from now on, of whatever framework, writes into."""
    from transformers import TrainerCallback, trainer

    trained = Trained()

    class Watch(TrainerCallback):
        def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
            if "loss" in logs:
                trained.losses.append(float(logs["loss"]))

        def on_train_end(self, *_: object, model: object, **__: object) -> None:
            trained.model = model

    trainer.DEFAULT_CALLBACKS.append(Watch)
    return trained


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024
