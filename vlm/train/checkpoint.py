"""Checkpoints: what a run needs to go on as if it had never stopped, on any number of ranks.

    checkpoints/step_000100/
        weights.safetensors     what trains, float32
        optimizer.safetensors   AdamW's moments, by the same names
        progress.json           step, samples, targets, what may not change, hash of the samples seen
        COMPLETE                sizes and sha256 of the others, written last

A checkpoint is copied to the host's memory at the end of a step and written while training goes on, under another name
until it is whole. The newest whole one is used; a damaged one is named and passed over.
"""

import hashlib
import json
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlm import ranks
from vlm.config import TrainRuntime
from vlm.data.plan import Plan
from vlm.errors import Unusable
from vlm.files import sha256, sync
from vlm.train.engine import MOMENTS, Engine, begin_restore, end_restore, gather, link_states, restore
from vlm.train.strategy import Trainee

WEIGHTS, OPTIMIZER, PROGRESS, COMPLETE = "weights.safetensors", "optimizer.safetensors", "progress.json", "COMPLETE"
FILES = (WEIGHTS, OPTIMIZER, PROGRESS)


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # optimizer updates
    samples: int = 0
    tokens: int = 0  # without padding
    targets: int = 0  # supervised tokens
    images: int = 0
    skipped: int = 0  # steps without an update
    skipped_in_a_row: int = 0  # up to now
    usual_loss: float = 0.0  # running mean over the updates, nats for each target; 0 before the first

    def count(self, samples: int, tokens: int, targets: int, images: int, loss: float | None) -> None:
        """Count a step; `loss` is None if it was skipped."""
        self.step += 1
        self.samples += samples
        self.tokens += tokens
        self.targets += targets
        self.images += images
        if loss is None:
            self.skipped += 1
            self.skipped_in_a_row += 1
        else:
            self.skipped_in_a_row = 0
            self.usual_loss = 0.98 * self.usual_loss + 0.02 * loss if self.usual_loss else loss


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, trainees: list[Trainee], plan: Plan, recipe: dict, runtime: TrainRuntime) -> None:
        """Save, as `runtime` says, a run of this plan; `recipe` names what may not change in mid-run."""
        self.folder = folder
        self.trainees = trainees
        self.plan = plan
        self.recipe = recipe
        self.runtime = runtime
        self._saved = time.monotonic()
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future | None = None  # of the first rank
        self._step = 0  # that is or was written last

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.shutdown()  # what is being written becomes whole, whatever ended the training

    def due(self, step: int) -> bool:
        """Say whether it is time to save, or to hear that saving failed; clocks differ, so the first rank's word counts."""
        minutes = self.runtime.save_minutes
        late = minutes is not None and time.monotonic() - self._saved >= minutes * 60
        failed = self._writing is not None and self._writing.done() and self._writing.exception() is not None
        return late or failed or step % self.runtime.save_every == 0

    def save(self, engine: Engine, progress: Progress) -> None:
        """Copy a checkpoint and begin to write it, when the one before is written; every rank must call.

        Raises Unusable as `settle` does, of the one before.
        """
        self.settle(engine)
        link_states(engine)
        weights, moments = {}, {}
        for trainee in self.trainees:
            full = gather(engine, trainee)
            if ranks.first():
                weights[trainee.name] = full["weight"].clone()
                moments |= {f"{trainee.name}/{key}": full[key].clone() for key in MOMENTS}
        if ranks.first():
            record = json.dumps(self._record(progress))
            self._writing = self._writer.submit(self._write, weights, moments, progress.step, record)
        self._step, self._saved = progress.step, time.monotonic()

    def settle(self, engine: Engine) -> None:
        """Wait until what was saved last is on disk; every rank must call.

        Raises Unusable on every rank if the disk does not take it; the checkpoints before it stand.
        """
        problem = self._writing.exception() if self._writing else None
        self._writing = None
        failed = torch.tensor(int(problem is not None), device=engine.device)
        if not ranks.sum_over_ranks(failed):  # also the other ranks wait here
            return
        if problem and not isinstance(problem, (OSError, SafetensorError)):
            raise problem
        raise Unusable(
            f"cannot save step {self._step} in {self.folder} ({problem}): free some space; the checkpoint before it stands"
        )

    def resume(self, engine: Engine) -> Progress:
        """Put the newest whole checkpoint into the engine; return its progress, or that of a new run.

        Raises Unusable if checkpoints exist but none is whole, or it belongs to another run.
        """
        found = self.newest()
        if found is None:
            return Progress()
        record = json.loads((found / PROGRESS).read_text())
        progress = Progress(**record.pop("progress"))
        self._check_same_run(found, record, progress.step)
        weights, moments = load_file(found / WEIGHTS), load_file(found / OPTIMIZER)
        if sorted(weights) != sorted(trainee.name for trainee in self.trainees):
            raise Unusable(f"{found} holds other parameters than those that train now")
        begin_restore(engine, progress.step - progress.skipped)
        with torch.no_grad():
            for trainee in self.trainees:
                full = {key: moments[f"{trainee.name}/{key}"] for key in MOMENTS}
                restore(engine, trainee, {"weight": weights[trainee.name], **full})
            end_restore(engine)
        return progress

    def newest(self) -> Path | None:
        """Return the newest checkpoint whose files are those that were written; None if none was ever written.

        Raises Unusable if all are damaged.
        """
        found = sorted(self.folder.glob("step_*[0-9]"), reverse=True)
        damaged = []
        for path in found:
            fault = fault_of(path)
            if fault is None:
                return path
            damaged.append(f"{path.name}: {fault}")
            if ranks.first():
                print(f"checkpoint {path} is damaged ({fault}); looking for the one before", flush=True)
        if damaged:
            raise Unusable(f"no checkpoint in {self.folder} is whole ({'; '.join(damaged)}): delete it to begin anew")
        return None

    def _record(self, progress: Progress) -> dict:
        plan = self.plan.fingerprint_until(progress.step)
        return {"progress": asdict(progress), "plan": plan, "steps": self.plan.steps, "recipe": self.recipe}

    def _check_same_run(self, found: Path, record: dict, step: int) -> None:
        """Raise Unusable, naming what differs, if the checkpoint is not one that this run may go on from."""
        began, now = record["recipe"], self.recipe
        changed = [f"{key}={began.get(key)}, not {now[key]}" for key in now if began.get(key) != now[key]]
        if changed:
            raise Unusable(f"{found} was trained with {'; '.join(changed)}: choose another run=, or set it back")
        if record["plan"] != self.plan.fingerprint_until(step):
            raise Unusable(
                f"{found} saw other samples up to step {step}: its last step was a short one, or fewer follow"
            )
        steps = self.plan.steps
        if record["steps"] != steps and not (self.runtime.extend and steps >= step):
            raise Unusable(
                f"{found} is of a run of {record['steps']} steps, not {steps}: add extend=true to go on in it"
            )

    def _write(self, weights: dict, moments: dict, step: int, record: str) -> None:
        """Write and rename a checkpoint, then remove old ones; if the disk does not take it, leave nothing of it."""
        path = self.folder / f"step_{step:06d}"
        waiting = path.with_name(path.name + ".tmp")
        try:
            for torn in self.folder.glob("step_*.tmp"):  # by a kill
                shutil.rmtree(torn)
            waiting.mkdir(parents=True)
            save_file(weights, waiting / WEIGHTS)
            save_file(moments, waiting / OPTIMIZER)
            (waiting / PROGRESS).write_text(record)
            for name in FILES:
                sync(waiting / name)
            manifest = {
                name: {"bytes": (waiting / name).stat().st_size, "sha256": sha256(waiting / name)} for name in FILES
            }
            (waiting / COMPLETE).write_text(json.dumps(manifest, indent=1))
            sync(waiting / COMPLETE)
            shutil.rmtree(path, ignore_errors=True)  # a damaged one of the same step
            waiting.rename(path)
            sync(self.folder)
        except (OSError, SafetensorError):
            shutil.rmtree(waiting, ignore_errors=True)
            raise
        self._prune(step)

    def _prune(self, newest: int) -> None:
        """Remove all but the checkpoints to keep; those after `newest` were damaged, or it would not have come back."""
        steps = {int(path.name.removeprefix("step_")): path for path in self.folder.glob("step_*[0-9]")}
        kept = set(sorted(step for step in steps if step <= newest)[-self.runtime.keep :])
        if every := self.runtime.keep_every:
            kept |= {step for step in steps if step <= newest and step % every == 0}
        for step, path in steps.items():
            if step not in kept:
                shutil.rmtree(path)


def base_hash(model: Path) -> str:
    """Return a hash of a model folder's weights, from the record of the artifact it lies in where there is one."""
    files = sorted(model.glob("*.safetensors"))
    record = model.parent / "artifact.json"
    known = json.loads(record.read_text())["sha256"] if record.is_file() else {}
    hashes = [known.get(f"{model.name}/{file.name}") or sha256(file) for file in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def fault_of(path: Path) -> str | None:
    """Say what is wrong with a checkpoint; None if its files are those that were written."""
    try:
        manifest = json.loads((path / COMPLETE).read_text())
        for name in FILES:
            if (path / name).stat().st_size != manifest[name]["bytes"]:
                return f"{name} has another size"
            if sha256(path / name) != manifest[name]["sha256"]:
                return f"{name} has other contents"
    except (OSError, ValueError, KeyError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return None
