"""What was expected of trainings, on disk, and what came of it.

    runs/<run>/preflight.json           {stage: figures}, the newest estimate of each stage
    runs/<run>/<stage>/preflight.json   what was expected of a training when it began, for `comparison`

Figures are those of vlm/train/preflight.py, with `forecast` (vlm/pipeline/forecast.py) and `made_for`, a hash of the settings.
"""

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlm.config import RootConfig
from vlm.files import write_whole
from vlm.pipeline import artifact
from vlm.pipeline.forecast import GIB, Forecast

REPORT = "preflight.json"
SWEEP = "preflight_sweep.json"
METRICS = "metrics.jsonl"
CONTEXT = "context and margin"  # vlm/train/memory.py


def made_for(cfg: RootConfig, node: str, inputs: Mapping[str, str], ranks: int) -> str:
    """Return a hash of all that an estimate rests on: settings, machine, ranks, and the inputs' keys by stage."""
    settings = {name: asdict(getattr(cfg, name)) for name in ("model", "hardware", node)}
    whole = json.dumps([cfg.seed, settings, inputs, ranks], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def measured_seconds(root: Path, stage: str, hardware: str, found: Mapping[str, Any]) -> float | None:
    """Return the median of the seconds for each step that a run of this stage has recorded on such a machine.

    None before it has, or where it ran with other settings than `found`.
    """
    for folder in (root / stage, root / f"{stage}.partial"):
        begun = folder / REPORT
        rows = _rows(folder) if begun.is_file() else []
        if not rows:
            continue
        then = json.loads(begun.read_text())
        same = all(then[name] == found[name] for name in ("ranks", "dtype", "zero", "recompute", "rows", "strategy"))
        if same and then["forecast"]["hardware"] == hardware:
            return statistics.median(row["seconds_per_step"] for row in rows)
    return None


def write(root: Path, stage: str, found: Mapping[str, Any], seen: Forecast, key: str) -> Path:
    """Leave the estimate of a stage in the run's preflight.json, beside those of other stages."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / REPORT
    record = read(root) | {stage: {**found, "forecast": asdict(seen), "made_for": key}}
    write_whole(path, json.dumps(record, indent=1).encode())
    return path


def read(root: Path) -> dict[str, dict[str, Any]]:
    """Return the run's estimates by stage, none if there are none."""
    path = root / REPORT
    return json.loads(path.read_text()) if path.is_file() else {}


def write_sweep(root: Path, stage: str, rows: list[dict[str, Any]]) -> None:
    """Leave compared settings in the run's preflight_sweep.json, beside those of other stages."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / SWEEP
    record = (json.loads(path.read_text()) if path.is_file() else {}) | {stage: rows}
    write_whole(path, json.dumps(record, indent=1).encode())


def is_expected(folder: Path, key: str) -> bool:
    """Say whether a training's folder holds what is expected of the artifact with this key."""
    path = folder / REPORT
    return path.is_file() and json.loads(path.read_text())["made_for"] == key


def expect(folder: Path, found: Mapping[str, Any], seen: Forecast, key: str) -> None:
    """Leave in a training's folder what is expected of it; the choices are left out."""
    kept = {name: value for name, value in found.items() if name != "choices"}
    write_whole(folder / REPORT, json.dumps({**kept, "forecast": asdict(seen), "made_for": key}, indent=1).encode())


def comparison(folder: Path) -> list[dict[str, Any]]:
    """Return what was expected of a training, and what came out, as rows of name, unit, predicted, measured.

    A value is None where it is not known: the time where `hardware` is of another kind than the machine it ran on. No
    rows without preflight.json.
    """
    if not (folder / REPORT).is_file():
        return []
    found, rows = json.loads((folder / REPORT).read_text()), _rows(folder)
    seen, work = found["forecast"], found["workload"]
    figures = artifact.figures_of(folder) if (folder / artifact.RECORD).is_file() else {}
    seconds = statistics.median(row["seconds_per_step"] for row in rows) if rows else None
    assumed, steps = seen["assumed_seconds_per_step"], figures.get("step")
    memory = figures.get("memory_bytes")
    expected = sum(size for name, size in found["memory"].items() if name != CONTEXT)  # which no allocator counts
    table = [
        ("steps", "", work["steps"], steps),
        ("samples", "", work["samples"], figures.get("samples")),
        ("tokens", "", work["tokens"], figures.get("tokens")),
        ("supervised tokens", "", work["targets"], figures.get("targets")),
        ("parameters that train", "", sum(found["trainable"].values()), figures.get("trainable_parameters")),
        ("time of a step", "s", assumed, seconds),
        ("time of all steps", "h", assumed and assumed * work["steps"] / 3600, seconds and steps and seconds * steps / 3600),
        ("memory of the first rank", "GiB", expected / GIB, memory and memory / GIB),
    ]  # fmt: skip
    return [dict(zip(("name", "unit", "predicted", "measured"), row, strict=True)) for row in table]


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that measured a step; the last may be torn."""
    path = folder / METRICS
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [row for row in rows if "seconds_per_step" in row]
