"""The lengths of a split's samples as a picture, lengths.png: for a look from a terminal, a wiki or a mail."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vlm.files import write_whole

PICTURE = "lengths.png"
WIDTH, HEIGHT, EDGE = 960, 300, 48  # pixels: of one histogram, and left free around its bars
BINS = 60
INK, BARS, LEARNT = (40, 44, 52), (120, 140, 170), (60, 150, 90)


def write_lengths(split: Path, rows: NDArray[np.void], max_tokens: int) -> None:
    """Write lengths.png into a split's folder: tokens and supervised tokens of its samples (N rows of the index)."""
    picture = Image.new("RGB", (WIDTH, 2 * HEIGHT), "white")
    for number, (title, column, colour) in enumerate(
        (("tokens of a sample", "tokens", BARS), ("supervised tokens of a sample", "targets", LEARNT))
    ):
        _draw(ImageDraw.Draw(picture), number * HEIGHT, f"{split.name}: {title}", rows[column], max_tokens, colour)
    out = io.BytesIO()
    picture.save(out, "PNG")
    write_whole(split / PICTURE, out.getvalue())


def counts(lengths: NDArray[np.integer]) -> tuple[NDArray[np.int64], int]:
    """Return how many lengths fall into each of BINS bins from 0 on, and the width of a bin in tokens."""
    width = max(1, -(-int(lengths.max(initial=0) + 1) // BINS))
    return np.bincount(lengths.astype(np.int64) // width, minlength=BINS), width


def _draw(
    draw: ImageDraw.ImageDraw, top: int, title: str, lengths: NDArray, limit: int, colour: tuple[int, int, int]
) -> None:
    font = ImageFont.load_default(size=14)
    bars, width = counts(lengths)
    floor, each = top + HEIGHT - EDGE, (WIDTH - 2 * EDGE) / BINS
    scale = (HEIGHT - 2 * EDGE) / max(int(bars.max(initial=0)), 1)
    middle = int(np.median(lengths)) if len(lengths) else 0
    note = f"{title} ({len(lengths):,} samples, median {middle:,}, longest {int(lengths.max(initial=0)):,}, limit {limit:,})"
    draw.text((EDGE, top + 10), note, INK, font)
    draw.text((6, floor - int(bars.max(initial=0) * scale) - 8), f"{int(bars.max(initial=0)):,}", INK, font)
    for number, count in enumerate(bars.tolist()):
        left = EDGE + number * each
        draw.rectangle((left, floor - count * scale, left + each - 2, floor), colour)
    draw.line((EDGE, floor, WIDTH - EDGE, floor), INK)
    for number in range(0, BINS + 1, 10):
        draw.text((EDGE + number * each, floor + 6), f"{number * width:,}", INK, font, anchor="ma")
