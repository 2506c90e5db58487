"""The ratios of a comparison as a picture: a bar for each row, and a mark where the goal is."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.table import Row, digits

WIDTH, LINE, LEFT, RIGHT, TOP = 1100, 26, 420, 170, 50  # pixels
GREY, GREEN, RED, PALE = (110, 110, 110), (40, 140, 80), (190, 60, 50), (90, 120, 170)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw how many times better ours is than the best peer, on a logarithmic axis; shares are turned over."""
    shown = [row for row in rows if row.ratio and math.isfinite(row.ratio)]
    canvas = Image.new("RGB", (WIDTH, TOP + LINE * len(shown) + 30), "white")
    pen = ImageDraw.Draw(canvas)
    times = [better(row, value) for row in shown for value in (row.ratio, row.goal or 1.0)]
    low, high = math.log10(min(0.5, *times, 1.0)), math.log10(max(2.0, *times, 1.0))

    def across(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    pen.text((LEFT, 12), "times better than the best peer (bar), goal (black mark)", GREY)
    for number, row in enumerate(shown):
        y = TOP + number * LINE
        value = better(row, row.ratio)
        colour = {True: GREEN, False: RED, None: PALE}[row.met]
        pen.text((LEFT - 8, y + 9), f"{row.name}, {row.unit}", "black", anchor="rm")
        start, end = sorted((across(1), across(value)))
        pen.rectangle([start, y + 2, end, y + 16], colour)
        if row.goal and not row.goal_is_figure:
            at = across(better(row, row.goal))
            pen.line([(at, y), (at, y + 18)], "black", 3)
        pen.text((WIDTH - RIGHT + 8, y + 9), f"{digits(value)} x {row.best_peer}"[:30], GREY, anchor="lm")
    pen.line([(across(1), TOP - 6), (across(1), TOP + LINE * len(shown))], GREY)
    canvas.save(path)


def better(row: Row, ratio: float) -> float:
    """Return a ratio as times better."""
    return 1 / ratio if row.goal_is_share else ratio
