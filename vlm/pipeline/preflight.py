"""Before a run is queued: whether it fits, how long it takes, what it costs. In a table, and in preflight.json.

An estimate is plain figures (vlm/train/preflight.py makes them); here they meet a machine: memory, peak rate, price,
disk and time limit. Once a run has measured seconds for each step, those replace the assumed utilisation.
"""

import json
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm.config import HardwareConfig
from vlm.errors import Unusable

GIB = 2**30
REPORT = "preflight.json"


@dataclass(frozen=True)
class Forecast:
    """What a machine makes of an estimate."""

    bytes_needed: int
    bytes_there: int
    seconds_per_step: float
    is_measured: bool  # else from the peak rate and the assumed utilisation
    hours: float
    device_hours: float
    cost: float | None
    disk_needed: int
    disk_free: int

    @property
    def fits(self) -> bool:
        return self.bytes_needed <= self.bytes_there and self.disk_needed <= self.disk_free


def forecast(found: Mapping[str, Any], hardware: HardwareConfig, root: Path, stage: str, keep: int) -> Forecast:
    """Return what the machine makes of the figures `found` of a stage whose run lies in `root`."""
    steps, ranks = found["workload"]["steps"], found["ranks"]
    peak = (hardware.bfloat16_tflops if found["dtype"] == "bfloat16" else hardware.float32_tflops) * 1e12
    assumed = sum(found["flops"].values()) / steps / (peak * hardware.utilisation * ranks)
    measured = measured_seconds(root, stage)
    seconds = measured or assumed
    hours = steps * seconds / 3600
    folder = next(one for one in (root, *root.parents, Path()) if one.exists())
    return Forecast(
        sum(found["memory"].values()),
        memory_of(hardware),
        seconds,
        measured is not None,
        hours,
        hours * ranks,
        None if hardware.price_per_hour is None else hours * ranks * hardware.price_per_hour,
        found["checkpoint_bytes"] * (keep + 1) + found["model_bytes"],
        shutil.disk_usage(folder).free,
    )


def memory_of(hardware: HardwareConfig) -> int:
    """Return the bytes of one device; of this machine where none are stated."""
    if hardware.memory_gib is not None:
        return round(hardware.memory_gib * GIB)
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemTotal"].split()[0]) * 1024


def measured_seconds(root: Path, stage: str) -> float | None:
    """Return the median of the seconds for each step that a run of this stage has recorded; None before it has."""
    for folder in (root / stage, root / f"{stage}.partial"):
        path = folder / "metrics.jsonl"
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            seconds = [row["seconds_per_step"] for row in rows if "seconds_per_step" in row]
            if seconds:
                return statistics.median(seconds)
    return None


def table(stage: str, found: Mapping[str, Any], hardware: HardwareConfig, seen: Forecast) -> str:
    """Return the estimate in lines for a person."""
    work, trains = found["workload"], found["trainable"]
    lines = [f"{stage}: estimate for {found['ranks']} x {hardware.name}, {found['dtype']}"]
    lines += [
        f"  {part:15} {size:>15,} parameters, {trains.get(part, 0):>15,} train"
        for part, size in {**dict.fromkeys(trains, 0), **found["parameters"]}.items()
    ]
    lines.append(
        f"  {work['steps']:,} steps, {work['samples']:,} samples, {work['images']:,} pictures, {work['packs']:,} packs, "
        f"padding {work['padding']:.1%}"
    )
    lines.append(
        f"  {work['tokens']:,} tokens: {work['image_tokens']:,} of pictures, "
        f"{work['tokens'] - work['image_tokens']:,} of text; {work['targets']:,} supervised"
    )
    lines.append(f"  memory of one rank ({work['rows']} rows of {work['length']} tokens at once), GiB")
    lines += [f"    {name:24} {size / GIB:>8.2f}" for name, size in found["memory"].items()]
    verdict = "fits" if seen.bytes_needed <= seen.bytes_there else "DOES NOT FIT"
    lines.append(f"    {'in all':24} {seen.bytes_needed / GIB:>8.2f} of {seen.bytes_there / GIB:.1f}: {verdict}")
    if found["host_memory"]:
        lines.append(f"    {'outside the device':24} {found['host_memory'] / GIB:>8.2f}")
    if room := rows_that_fit(found, seen.bytes_there):
        lines.append(f"    rows_at_once up to {room} fit")
    total = sum(found["flops"].values())
    source = "measured" if seen.is_measured else f"{hardware.utilisation:.0%} of the peak rate assumed"
    lines.append(
        f"  {total:.3g} FLOPs; {seen.seconds_per_step:.3g} s a step ({source}): {seen.hours:.2f} h, "
        f"{seen.device_hours:.1f} device hours" + ("" if seen.cost is None else f", cost {seen.cost:,.2f}")
    )
    full = "" if seen.disk_needed <= seen.disk_free else ": NOT ENOUGH"
    lines.append(f"  disk: {seen.disk_needed / GIB:.2f} GiB of {seen.disk_free / GIB:.1f} free{full}")
    return "\n".join(lines)


def rows_that_fit(found: Mapping[str, Any], there: int) -> int | None:
    """Return the largest tried `rows_at_once` whose memory is there; None if not even one row fits."""
    return max((int(rows) for rows, size in found["rows_that_fit"].items() if size <= there), default=None)


def require_room(found: Mapping[str, Any], seen: Forecast) -> None:
    """Refuse what cannot fit, naming the item that breaks it and the nearest setting that fits.

    Raises Unusable.
    """
    if seen.disk_needed > seen.disk_free:
        raise Unusable(
            f"it writes up to {seen.disk_needed / GIB:.1f} GiB, {seen.disk_free / GIB:.1f} GiB are free: make room, "
            "or keep fewer checkpoints (runtime.keep)"
        )
    if seen.bytes_needed <= seen.bytes_there:
        return
    name, size = max(found["memory"].items(), key=lambda item: item[1])
    room = rows_that_fit(found, seen.bytes_there)
    nearest = f"runtime.rows_at_once={room} fits" if room else found["advice"]
    raise Unusable(
        f"it needs {seen.bytes_needed / GIB:.1f} GiB on each device, {seen.bytes_there / GIB:.1f} are there; "
        f"most of it {name}, {size / GIB:.1f} GiB: {nearest} (preflight=warn goes on all the same)"
    )


def write(root: Path, stage: str, found: Mapping[str, Any], seen: Forecast) -> Path:
    """Leave the estimate of a stage in the run's preflight.json, beside those of other stages."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / REPORT
    record = json.loads(path.read_text()) if path.is_file() else {}
    record[stage] = {**found, "forecast": asdict(seen)}
    path.write_text(json.dumps(record, indent=2))
    return path
