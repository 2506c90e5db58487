"""Before a training is queued: whether it fits, how long it takes, what it costs, and what would be faster.

    preflight=true    a table and preflight.json; refuses what cannot fit
    preflight=sweep   strategies x ZeRO x recomputation x micro-batch, the fastest that fits marked
    preflight=warn    what does not fit is said, and goes on
    preflight=off     a submission is not looked at

No torch enters before a stage that trains is estimated.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from vlm.config import RootConfig
from vlm.errors import Unusable
from vlm.pipeline import artifact, predictions
from vlm.pipeline.forecast import (
    Forecast,
    Limits,
    forecast,
    memory_of,
    overrides,
    require_room,
    seconds_of_step,
    warnings_of,
)
from vlm.pipeline.preflight_table import comparison_table, table, total_table
from vlm.pipeline.provenance import PROJECT

if TYPE_CHECKING:
    from vlm.pipeline.stage import Stage


@dataclass(frozen=True)
class Machine:
    """What an estimate is for: ranks, a GPU or not (None: whatever is here), DeepSpeed's keys to compare by name."""

    ranks: int
    is_gpu: bool | None
    zeros: Mapping[str, Mapping[str, Any]]


Estimate = Callable[[RootConfig, Mapping[str, Path], Machine], dict[str, Any]]


def show(stage: "Stage", cfg: RootConfig, root: Path, ranks: int) -> str:
    """Estimate a stage, leave the figures in the run's preflight.json, print the table; return a last line.

    Raises Unusable if it cannot fit, or its config cannot be read.
    """
    if stage.estimate is None:
        return f"{stage.name}: no training; nothing to estimate"
    found, seen = _look(stage, cfg, root, ranks)
    limits, node = limits_of(cfg), node_of(stage)
    print(table(stage.name, found, cfg.hardware, seen, warnings_of(found, seen, limits, node)), flush=True)
    require_room(found, seen, cfg.hardware, limits, node)
    return f"{stage.name}: {root / predictions.REPORT}"


def total(cfg: RootConfig, root: Path) -> str:
    """Return the sums over all stages that the run's preflight.json holds."""
    stages = predictions.read(root)
    if not stages:
        return f"{cfg.run}: nothing was estimated"
    has_model = (root / "01_assemble" / artifact.RECORD).is_file()
    return total_table(cfg.run, stages, 0 if has_model else max(one["model_bytes"] for one in stages.values()))


def admit(stage: "Stage", cfg: RootConfig, root: Path, ranks: int) -> None:
    """Look at a training before it is submitted; an estimate made for the same settings is not made again.

    Raises Unusable if it cannot fit, unless preflight=warn.
    """
    if stage.estimate is None or cfg.preflight == "off" or not cfg.hardware.is_gpu:
        return
    known = predictions.read(root).get(stage.name, {})
    if known.get("made_for") == predictions.made_for(cfg, node_of(stage), _keys(stage, root), ranks):
        found, seen = known, cast(cfg, root, stage.name, known)
    else:
        found, seen = _look(stage, cfg, root, ranks)
    limits, node = limits_of(cfg), node_of(stage)
    try:
        require_room(found, seen, cfg.hardware, limits, node)
    except Unusable as problem:
        if cfg.preflight != "warn":
            raise
        print(f"{stage.name}: WARNING: {problem}", flush=True)
    for one in warnings_of(found, seen, limits, node):
        print(f"{stage.name}: WARNING: {one}", flush=True)


def expect(stage: "Stage", cfg: RootConfig, inputs: Mapping[str, Path], folder: Path, key: str) -> None:
    """Leave in a training's folder what is expected of it, once for the artifact's key, before its first step."""
    if stage.estimate is None or predictions.is_expected(folder, key):
        return
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        found = stage.estimate(cfg, inputs, Machine(ranks, None, {}))
    except Exception as problem:  # an estimate that cannot be made, of a model of a new kind say, stops no training
        print(f"{stage.name}: no estimate of this training: {type(problem).__name__}: {problem}", flush=True)
        return
    predictions.expect(folder, found, forecast(found, cfg.hardware, limits_of(cfg), folder, None), key)


def sweep(stage: "Stage", cfg: RootConfig, root: Path, ranks: int) -> str:
    """Return the comparison of strategies, ZeRO stages, recomputation and micro-batches; leave it in preflight.json.

    Each strategy is composed as its override on the command line would compose it.
    """
    if stage.estimate is None:
        return f"{stage.name}: no training; nothing to compare"
    node, there, limits = node_of(stage), memory_of(cfg.hardware), limits_of(cfg)
    rows: list[dict[str, Any]] = []
    for name in sorted(path.stem for path in (PROJECT / "conf" / node).glob("*.yaml")):
        try:
            found = stage.estimate(_composed(node, name), _inputs(stage, root), machine_of(cfg, ranks))
        except Unusable as problem:
            print(f"{stage.name}: {node}={name} is left out: {problem}", flush=True)
            continue
        for choice in found["choices"]:
            seconds = seconds_of_step(found, choice, cfg.hardware, limits)
            hours = None if seconds is None else seconds * found["workload"]["steps"] / 3600
            words = [f"{node}={name}", *overrides(choice, node, ["zero", "recompute", "rows"])]
            if choice["ranks"] == ranks:
                fits = choice["memory"] <= there
                rows.append({**choice, "strategy": name, "hours": hours, "fits": fits, "overrides": " ".join(words)})
    predictions.write_sweep(root, stage.name, rows)
    return comparison_table(stage.name, rows, cfg.hardware, there)


def cast(cfg: RootConfig, root: Path, stage: str, found: Mapping[str, Any]) -> Forecast:
    """Return what the machine of the settings makes of a stage's figures, with what its run has measured so far."""
    measured = predictions.measured_seconds(root, stage, cfg.hardware.name, found)
    return forecast(found, cfg.hardware, limits_of(cfg), root, measured)


def machine_of(cfg: RootConfig, ranks: int) -> Machine:
    """Return the machine that `hardware` describes, with every choice in conf/deepspeed/."""
    files = sorted((PROJECT / "conf/deepspeed").glob("*.yaml"))
    zeros = {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in files}
    return Machine(ranks, cfg.hardware.is_gpu, zeros)


def limits_of(cfg: RootConfig) -> Limits:
    """Return what the cluster allows a job; nothing is limited without one."""
    if cfg.cluster is None:
        return Limits()
    cluster = cfg.cluster
    return Limits(cluster.nodes, cluster.minutes, cluster.signal_delay_seconds, cluster.max_requeues)


def node_of(stage: "Stage") -> str:
    """Return the settings node of a stage's training, which is also its folder of choices in conf/."""
    return stage.settings[-1]


def _look(stage: "Stage", cfg: RootConfig, root: Path, ranks: int) -> tuple[dict[str, Any], Forecast]:
    found = stage.estimate(cfg, _inputs(stage, root), machine_of(cfg, ranks))
    seen = cast(cfg, root, stage.name, found)
    key = predictions.made_for(cfg, node_of(stage), _keys(stage, root), ranks)
    predictions.write(root, stage.name, found, seen, key)
    return found, seen


def _inputs(stage: "Stage", root: Path) -> dict[str, Path]:
    return {one: root / one for one in stage.reads if (root / one / artifact.RECORD).is_file()}


def _keys(stage: "Stage", root: Path) -> dict[str, str]:
    return {one: artifact.load(path).key for one, path in _inputs(stage, root).items()}


def _composed(node: str, choice: str) -> RootConfig:
    """Return the settings as they are, but with another choice of the group `node`."""
    given = [one for one in HydraConfig.get().overrides.task if one.split("=")[0] not in (node, "preflight")]
    return OmegaConf.to_object(compose("config", overrides=[*given, f"{node}={choice}"]))
