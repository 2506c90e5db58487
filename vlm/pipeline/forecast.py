"""What a machine makes of an estimate: whether it fits, how long it takes, what it costs, what would fit instead.

Time of a step = FLOPs / (1 - padding) / (peak × utilisation × ranks) + bytes sent / link; both are data sheets' rates, the
utilisation is assumed. Once a run has measured seconds for each step, those replace the sum.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.config import HardwareConfig
from vlm.errors import Unusable

GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What the queue allows a job."""

    nodes: int = 1
    minutes: float | None = None  # of one job; null: no limit
    signal_seconds: float = 0.0  # between the warning and the limit
    requeues: int = 0  # how often a job goes on after its limit


@dataclass(frozen=True)
class Forecast:
    """What a machine makes of an estimate. What depends on the steps is None before there is an index."""

    hardware: str
    bytes_needed: int
    bytes_there: int
    disk_needed: int
    disk_free: int
    assumed_seconds_per_step: float | None
    seconds_per_step: float | None
    is_measured: bool  # else assumed
    hours: float | None
    device_hours: float | None
    cost: float | None
    jobs: int | None  # that a time limit cuts the training into

    @property
    def fits(self) -> bool:
        return self.bytes_needed <= self.bytes_there and self.disk_needed <= self.disk_free


def forecast(
    found: Mapping[str, Any], hardware: HardwareConfig, limits: Limits, root: Path, measured: float | None
) -> Forecast:
    """Return what the machine makes of the figures `found` of a stage whose run lies in `root`.

    `measured` are the seconds of a step that a run has shown on this machine.
    """
    steps, ranks = found["workload"]["steps"], found["ranks"]
    assumed = seconds_of_step(found, chosen(found), hardware, limits) if steps else None
    seconds = measured or assumed
    hours = steps * seconds / 3600 if seconds and steps else None
    price = hardware.price_per_hour
    folder = next(one for one in (root, *root.parents, Path()) if one.exists())
    return Forecast(
        hardware.name,
        sum(found["memory"].values()),
        memory_of(hardware),
        found["checkpoint_bytes"] * (found["keep"] + 1) + found["model_bytes"],
        shutil.disk_usage(folder).free,
        assumed,
        seconds,
        measured is not None,
        hours,
        None if hours is None else hours * ranks,
        None if hours is None or price is None else hours * ranks * price,
        None if hours is None or limits.minutes is None else max(1, math.ceil(hours * 60 / limits.minutes)),
    )


def chosen(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return, of the choices, the settings as they are."""
    names = ("zero", "recompute", "rows", "ranks")
    return next(choice for choice in found["choices"] if all(choice[name] == found[name] for name in names))


def seconds_of_step(
    found: Mapping[str, Any], choice: Mapping[str, Any], hardware: HardwareConfig, limits: Limits
) -> float | None:
    """Return the seconds that a step would take by data sheet and utilisation; None before there is an index."""
    steps = found["workload"]["steps"]
    if not steps or found["is_gpu"] != hardware.is_gpu:
        return None
    peak = (hardware.bfloat16_tflops if found["dtype"] == "bfloat16" else hardware.float32_tflops) * 1e12
    computing = choice["flops"] / steps / (1 - choice["padding"]) / (peak * hardware.utilisation * choice["ranks"])
    link = hardware.network_gbytes if limits.nodes > 1 else hardware.link_gbytes
    sending = choice["sent"] / (link * 1e9) if link else 0.0
    offloading = choice["host_sent"] / (hardware.host_gbytes * 1e9) if hardware.host_gbytes else 0.0
    return computing + sending + offloading


def memory_of(hardware: HardwareConfig) -> int:
    """Return the bytes of one device; of this machine where none are stated."""
    if hardware.memory_gib is not None:
        return round(hardware.memory_gib * GIB)
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemTotal"].split()[0]) * 1024


def largest_rows(found: Mapping[str, Any], there: int) -> int | None:
    """Return the largest rows_at_once, of those tried, that fits with all else as it is; None if not even one row does."""
    same = ("zero", "recompute", "ranks")
    rows = [one["rows"] for one in found["choices"] if all(one[n] == found[n] for n in same) and one["memory"] <= there]
    return max(rows, default=None)


def nearest(found: Mapping[str, Any], hardware: HardwareConfig, limits: Limits, node: str, there: int) -> str | None:
    """Return the overrides that fit with the fewest settings changed, the fastest of these; None if none fits."""
    fits = [choice for choice in found["choices"] if choice["memory"] <= there]
    names = ("ranks", "zero", "recompute", "rows")

    def distance(choice: Mapping[str, Any]) -> tuple:
        changed = [choice[name] != found[name] for name in names]
        slowness = seconds_of_step(found, choice, hardware, limits) or choice["flops"]
        return changed[0], sum(changed), slowness, -choice["rows"]

    if not fits:
        return None
    best = min(fits, key=distance)
    return " ".join(overrides(best, node, [name for name in names if best[name] != found[name]]))


def overrides(choice: Mapping[str, Any], node: str, names: list[str]) -> list[str]:
    """Return the command line's words for settings of a choice."""
    words = {
        "ranks": f"hardware.devices={choice['ranks']}",
        "zero": f"deepspeed@{node}.deepspeed={choice['zero']}",
        "recompute": f"{node}.runtime.recompute={choice['recompute']}",
        "rows": f"{node}.runtime.rows_at_once={choice['rows']}",
    }
    return [words[name] for name in names]


def require_room(found: Mapping[str, Any], seen: Forecast, hardware: HardwareConfig, limits: Limits, node: str) -> None:
    """Refuse what cannot fit, naming the item that breaks it and the nearest setting that fits.

    Raises Unusable.
    """
    if seen.bytes_needed > seen.bytes_there:
        name, size = breaking_item(found, seen.bytes_there)
        better = nearest(found, hardware, limits, node, seen.bytes_there)
        raise Unusable(
            f"it needs {seen.bytes_needed / GIB:.1f} GiB on each device, {seen.bytes_there / GIB:.1f} are there; what "
            f"breaks it is {name}, {size / GIB:.1f} GiB: "
            + (f"{better} fits" if better else found["advice"])
            + " (preflight=warn goes on all the same)"
        )
    if seen.disk_needed > seen.disk_free:
        raise Unusable(
            f"it writes up to {seen.disk_needed / GIB:.1f} GiB, {seen.disk_free / GIB:.1f} GiB are free: make room, or "
            f"keep fewer checkpoints ({node}.runtime.keep; preflight=warn goes on all the same)"
        )
    if seen.is_measured and seen.jobs and seen.jobs > limits.requeues + 1:
        raise Unusable(
            f"it takes {seen.hours:.1f} h, measured, which is {seen.jobs} jobs of {limits.minutes:g} minutes, and a job is "
            f"put back {limits.requeues} times: raise the time limit or max_requeues (preflight=warn goes on all the same)"
        )


def breaking_item(found: Mapping[str, Any], there: int) -> tuple[str, int]:
    """Return the largest item: without it the rest would fit, or no single one is to blame."""
    return max(found["memory"].items(), key=lambda item: item[1])


def warnings_of(found: Mapping[str, Any], seen: Forecast, limits: Limits, node: str) -> list[str]:
    """Return what the time limit makes of a training that is too long for one job, in sentences."""
    if seen.jobs is None or seen.jobs == 1 or limits.minutes is None:
        return []
    said = []
    if seen.jobs > limits.requeues + 1:
        said.append(f"a job is put back {limits.requeues} times only: raise the time limit or max_requeues")
    if seen.seconds_per_step > limits.signal_seconds:
        save = min(found["save_every"] * seen.seconds_per_step / 60, found["save_minutes"] or math.inf)
        lost = f"up to {min(save, limits.minutes):.0f} minutes of each job are lost"
        if save >= limits.minutes:
            lost = "NO JOB SAVES ANYTHING"
        said.append(
            f"a step takes longer than the {limits.signal_seconds:g} s between warning and limit: {lost}; "
            f"raise signal_delay_seconds, or lower {node}.runtime.save_every"
        )
    return said
