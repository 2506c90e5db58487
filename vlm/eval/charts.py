"""Training curves, as inline SVG."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 420, 220  # of a curve's drawing, its own units
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 12, 24  # margins
SMOOTHED_OVER = 25  # a smooth curve is a mean over this share (1/n) of the run


@dataclass(frozen=True)
class Curve:
    """What a training logged: S points in order of steps."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]  # nats for each target
    rates: tuple[float, ...]  # learning rate, the highest of any part; empty if it was not logged
    held_out: tuple[tuple[int, float], ...] = ()  # step and loss of each look at held-out samples


def read_curve(path: Path) -> Curve | None:
    """Read a training's metrics.jsonl; None if it is not there or holds fewer than two points."""
    points, held_out = [], []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a killed training may have torn its last line
        if not isinstance(record, dict) or not _is_number(record.get("step")):
            continue
        if _is_number(record.get("held_out/loss")):
            held_out.append((int(record["step"]), float(record["held_out/loss"])))
        if not _is_number(record.get("loss")):
            continue
        rates = [value for key, value in record.items() if key.split("/")[0] == "lr" and _is_number(value)]
        points.append((int(record["step"]), float(record["loss"]), max(rates, default=math.nan)))
    points.sort()
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    steps, losses, rates = zip(*points, strict=True)
    return Curve(steps, losses, () if any(map(math.isnan, rates)) else rates, tuple(sorted(held_out)))


def curve_panel(title: str, curve: Curve) -> str:
    """Return a panel with the loss as logged and smoothed, that of held-out samples, and the learning rate's shape."""
    smooth = _smoothed(curve.losses)
    ticks = _ticks(0.0, _top([*curve.losses, *(loss for _, loss in curve.held_out)]))
    first, last, highest = curve.steps[0], curve.steps[-1], ticks[-1]

    def at(step: int, value: float, top: float) -> tuple[float, float]:
        return LEFT + (min(max(step, first), last) - first) / (last - first) * (WIDTH - LEFT - RIGHT), _y(value, top)

    def path(steps: Sequence[int], values: Sequence[float], top: float) -> str:
        points = (at(step, min(value, top), top) for step, value in zip(steps, values, strict=True))
        return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)

    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(tick, highest):.1f}" y2="{_y(tick, highest):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{_y(tick, highest) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">step {first:,}</text>')
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{last:,}</text>')
    note = f"loss, ending at {smooth[-1]:.3f} nats for each target"
    if curve.rates and max(curve.rates) > 0:
        lines.append(f'<path class="rate" d="{path(curve.steps, curve.rates, max(curve.rates) * 1.05)}"/>')
        note += f"; dashed: learning rate, up to {max(curve.rates):.2g}"
    lines.append(f'<path class="raw" d="{path(curve.steps, curve.losses, highest)}"/>')
    lines.append(f'<path class="smooth" d="{path(curve.steps, smooth, highest)}"/>')
    if curve.held_out:
        lines.append(f'<path class="held" d="{path(*zip(*curve.held_out, strict=True), highest)}"/>')
        spots = (at(step, min(loss, highest), highest) for step, loss in curve.held_out)
        lines += [f'<circle class="held" r="2.5" cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in spots]
        note += f"; green: held-out samples, ending at {curve.held_out[-1][1]:.3f}"
    drawing = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} {note}">{"".join(lines)}</svg>'
    )
    return f'<div class="panel"><h3>{escape(title)}</h3>{drawing}<p class="note">{note}</p></div>'


def _top(losses: Sequence[float]) -> float:
    """Return the height of the drawing: a few wild values, as in the first steps, may leave it."""
    ordered = sorted(loss for loss in losses if math.isfinite(loss))
    return max(ordered[int(0.99 * (len(ordered) - 1))], 1e-3) if ordered else 1.0


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers from `low` to at least `high`."""
    raw = max(high - low, 1e-9) / 4
    scale = 10 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= raw * (1 - 1e-9))
    return [round(low + step * i, 12) for i in range(math.ceil((high - low) / step - 1e-9) + 1)]


def _y(value: float, top: float) -> float:
    share = value / top if math.isfinite(value) else 1.0
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return, for each point, the mean of the points around it."""
    half = max(1, len(values) // SMOOTHED_OVER)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
