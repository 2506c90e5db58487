"""Checkpoints: what a run needs to go on as if it had never stopped, on any number of ranks.

    checkpoints/step_000100/
        weights.safetensors     what trains, float32
        optimizer.safetensors   AdamW's moments, by the same names
        progress.json           step, samples, targets, hashes of the plan and of the base that what is frozen comes from
        COMPLETE                sizes and sha256 of the others, written last

A checkpoint is written under another name and renamed when whole. The newest whole one is used; a damaged one is
named and passed over.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vlm import ranks
from vlm.errors import Unusable
from vlm.files import sha256, sync
from vlm.train.engine import Engine, begin_restore, gather, link_states, restore
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


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, trainees: list[Trainee], plan: str, keep: int, base: str) -> None:
        """Keep the newest `keep` checkpoints of a run whose plan and base have these hashes in `folder`."""
        self.folder = folder
        self.trainees = trainees
        self.plan = plan
        self.base = base
        self.keep = keep

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write a checkpoint; every rank must call."""
        link_states(engine)
        weights, moments = {}, {}
        for trainee in self.trainees:
            full = gather(engine, trainee)
            if ranks.first():
                weights[trainee.name] = full["weight"].clone()
                moments |= {f"{trainee.name}/{key}": full[key].clone() for key in ("exp_avg", "exp_avg_sq")}
        if ranks.first():
            self._write(weights, moments, progress)
        ranks.barrier()

    def resume(self, engine: Engine) -> Progress:
        """Put the newest whole checkpoint into the engine; return its progress, or that of a new run.

        Raises Unusable if checkpoints exist but none is whole, or it belongs to another plan.
        """
        found = self.newest()
        if found is None:
            return Progress()
        record = json.loads((found / PROGRESS).read_text())
        if record.pop("plan") != self.plan:
            raise Unusable(f"{found} belongs to another plan: the shards, the seed or the batch have changed")
        if record.pop("base") != self.base:
            raise Unusable(f"{found} was trained on another base model, or its files have changed")
        progress = Progress(**record)
        weights, moments = load_file(found / WEIGHTS), load_file(found / OPTIMIZER)
        if sorted(weights) != sorted(trainee.name for trainee in self.trainees):
            raise Unusable(f"{found} holds other parameters than those that train now")
        begin_restore(engine, progress.step)
        with torch.no_grad():
            for trainee in self.trainees:
                full = {key: moments[f"{trainee.name}/{key}"] for key in ("exp_avg", "exp_avg_sq")}
                restore(engine, trainee, {"weight": weights[trainee.name], **full})
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

    def _write(self, weights: dict, moments: dict, progress: Progress) -> None:
        path = self.folder / f"step_{progress.step:06d}"
        waiting = path.with_name(path.name + ".tmp")
        shutil.rmtree(waiting, ignore_errors=True)
        waiting.mkdir(parents=True)
        save_file(weights, waiting / WEIGHTS)
        save_file(moments, waiting / OPTIMIZER)
        (waiting / PROGRESS).write_text(json.dumps({**asdict(progress), "plan": self.plan, "base": self.base}))
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
        for old in sorted(self.folder.glob("step_*[0-9]"))[: -self.keep]:
            shutil.rmtree(old)


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
