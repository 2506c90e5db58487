"""Estimates in lines for a person: of a stage, of settings compared, of a whole run."""

from collections.abc import Iterable, Mapping
from typing import Any

from vlm.config import HardwareConfig
from vlm.pipeline.forecast import GIB, Forecast, largest_rows

FASTEST = "<- fastest that fits"


def table(
    stage: str, found: Mapping[str, Any], hardware: HardwareConfig, seen: Forecast, warnings: Iterable[str]
) -> str:
    """Return the estimate of a stage."""
    work = found["workload"]
    lines = [
        f"{stage}: {found['strategy']} on {found['ranks']} x {hardware.name}, {found['dtype']}, {found['zero']}, "
        f"recompute={found['recompute']}, rows_at_once={found['rows']}"
    ]
    lines += _parts(found)
    if work["steps"]:
        lines += [
            f"  {work['steps']:,} steps, {work['samples']:,} samples, {work['images']:,} pictures, {work['packs']:,} packs, "
            f"padding {work['padding']:.1%}",
            f"  {work['tokens']:,} tokens: {work['image_tokens']:,} of pictures, "
            f"{work['tokens'] - work['image_tokens']:,} of text; {work['targets']:,} supervised",
        ]
    else:
        lines.append("  no shards yet: steps, tokens and time are not known; memory is that of the fullest micro-batch")
    lines += _memory(found, seen)
    lines += _time(found, hardware, seen)
    full = "" if seen.disk_needed <= seen.disk_free else ": NOT ENOUGH"
    lines.append(
        f"  disk: {seen.disk_needed / GIB:.2f} GiB of {seen.disk_free / GIB:.1f} free{full} "
        f"({found['keep'] + 1} checkpoints of {found['checkpoint_bytes'] / GIB:.2f}, model {found['model_bytes'] / GIB:.2f})"
    )
    return "\n".join([*lines, *(f"  WARNING: {one}" for one in warnings)])


def _parts(found: Mapping[str, Any]) -> list[str]:
    trains = found["trainable"]
    sizes = {**dict.fromkeys(trains, 0), **found["parameters"]}
    rows = [(part, size, trains.get(part, 0)) for part, size in sizes.items()]
    rows.append(("in all", sum(found["parameters"].values()), sum(trains.values())))
    return [f"  {part:15} {size:>15,} parameters, {training:>15,} train" for part, size, training in rows]


def _memory(found: Mapping[str, Any], seen: Forecast) -> list[str]:
    work = found["workload"]
    lines = [f"  memory of one rank ({work['rows']} rows of {work['length']} tokens at once), GiB"]
    lines += [f"    {name:24} {size / GIB:>8.2f}" for name, size in found["memory"].items()]
    verdict = "fits" if seen.bytes_needed <= seen.bytes_there else "DOES NOT FIT"
    lines.append(f"    {'in all':24} {seen.bytes_needed / GIB:>8.2f} of {seen.bytes_there / GIB:.1f}: {verdict}")
    if found["host_memory"]:
        lines.append(f"    {'memory of its host':24} {found['host_memory'] / GIB:>8.2f} while the first rank saves")
    if room := largest_rows(found, seen.bytes_there):
        lines.append(f"    rows_at_once={room} is the largest tried that fits")
    return lines


def _time(found: Mapping[str, Any], hardware: HardwareConfig, seen: Forecast) -> list[str]:
    if not found["workload"]["steps"]:
        return []
    total, steps = sum(found["flops"].values()), found["workload"]["steps"]
    parts = ", ".join(f"{name} {value / total:.0%}" for name, value in found["flops"].items() if value)
    lines = [f"  {total / steps:.3g} FLOPs a step, {total:.3g} in all: {parts}"]
    if seen.hours is None:
        return [*lines, "  time is not known: hardware= is of another kind"]
    source = "measured" if seen.is_measured else f"{hardware.utilisation:.0%} of the peak rate assumed"
    lines.append(
        f"  {seen.seconds_per_step:.3g} s a step ({source}): {seen.hours:.2f} h, {seen.device_hours:.1f} device hours"
        + ("" if seen.cost is None else f", cost {seen.cost:,.2f}")
        + ("" if seen.jobs is None else f"; {seen.jobs - 1} requeues at the time limit")
    )
    return lines


def comparison_table(stage: str, rows: list[Mapping[str, Any]], hardware: HardwareConfig, there: int) -> str:
    """Return settings compared: for each ZeRO stage and recomputation the memory by rows_at_once, and the least time.

    A row has `strategy`, `zero`, `recompute`, `rows`, `memory` (bytes), `hours` (or None) and `fits`; of each strategy the
    fastest that fits is marked.
    """
    tried = sorted({row["rows"] for row in rows})
    groups: dict[tuple, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["strategy"], row["zero"], row["recompute"]), {})[row["rows"]] = row
    fastest = {
        strategy: fastest_of([row for row in rows if row["strategy"] == strategy], there) for strategy, _, _ in groups
    }
    lines = [
        f"{stage}: GiB of one rank by rows_at_once on {hardware.name} ({there / GIB:.1f} GiB; brackets do not fit), and "
        "the hours of the fastest that fits",
        f"  {'strategy':14}{'deepspeed':15}{'recompute':10}"
        + "".join(f"{n:>8}" for n in tried)
        + f"{'rows':>8}{'hours':>9}",
    ]
    for (strategy, zero, recompute), by_rows in groups.items():
        cells = "".join(f"{_cell(by_rows.get(n)):>8}" for n in tried)
        best = fastest_of(list(by_rows.values()), there)
        ends = f"{'-':>8}{'-':>9}" if best is None else f"{best['rows']:>8}{_hours(best['hours']):>9}"
        mark = f"  {FASTEST}" if best is not None and best is fastest[strategy] else ""
        lines.append(f"  {strategy:14}{zero:15}{recompute:10}{cells}{ends}{mark}")
    for strategy, best in fastest.items():
        lines.append(
            f"{stage}: {strategy} fits in none of these" if best is None else
            f"{stage}: {strategy}, {_hours(best['hours'])} h:  {best['overrides']}"
        )  # fmt: skip
    return "\n".join(lines)


def fastest_of(rows: list[Mapping[str, Any]], there: int) -> Mapping[str, Any] | None:
    """Return the fastest row that fits; of equally fast ones (to a hundredth) the most rows that leave a tenth free."""
    fits = [row for row in rows if row["fits"]]
    if not fits:
        return None
    least = min(map(_slowness, fits))
    near = [row for row in fits if _slowness(row) <= least * 1.01]
    return min(near, key=lambda row: (row["memory"] > 0.9 * there, -row["rows"], row["memory"]))


def _slowness(row: Mapping[str, Any]) -> float:
    return row["flops"] if row["hours"] is None else row["hours"]


def total_table(run: str, stages: Mapping[str, Mapping[str, Any]], assembled: int) -> str:
    """Return the sums over the trainings of a run: the last line says whether all of it fits.

    `assembled` are the bytes of the model that stage 01 has yet to write.
    """
    lines = [
        f"{run}: {'stage':12}{'steps':>10}{'GiB':>8}{'of':>8}{'hours':>10}{'device h':>10}{'cost':>12}{'disk GiB':>10}"
    ]
    pad = " " * (len(run) + 2)
    for name, found in stages.items():
        seen = found["forecast"]
        there = f"{seen['bytes_needed'] / GIB:>8.1f}{seen['bytes_there'] / GIB:>8.1f}"
        lines.append(f"{pad}{name:12}{found['workload']['steps'] or '-':>10}{there}{_sums(seen)}{_disk(found):>10.1f}")
    seens = [found["forecast"] for found in stages.values()]
    added = {
        name: None if any(seen[name] is None for seen in seens) else sum(seen[name] for seen in seens)
        for name in ("hours", "device_hours", "cost")
    }
    if assembled:
        lines.append(f"{pad}{'01_assemble':12}{'':58}{assembled / GIB:>10.1f}")
    disk, free = assembled / GIB + sum(map(_disk, stages.values())), min(seen["disk_free"] for seen in seens) / GIB
    fits = all(seen["bytes_needed"] <= seen["bytes_there"] for seen in seens) and disk <= free
    lines.append(f"{pad}{'total':12}{'':26}{_sums(added)}{disk:>10.1f}")
    verdict = "all of it fits" if fits else "IT DOES NOT ALL FIT"
    lines.append(
        f"{run}: {verdict}; {disk:.1f} GiB of disk of {free:.1f} free; sharding and evaluation are not counted"
    )
    return "\n".join(lines)


def _disk(found: Mapping[str, Any]) -> float:
    return found["forecast"]["disk_needed"] / GIB


def _sums(seen: Mapping[str, Any]) -> str:
    cost = "-" if seen["cost"] is None else f"{seen['cost']:,.2f}"
    return f"{_hours(seen['hours']):>10}{_hours(seen['device_hours']):>10}{cost:>12}"


def _hours(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['memory'] / GIB:.1f}" if row["fits"] else f"({row['memory'] / GIB:.0f})"
