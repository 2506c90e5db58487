"""loss.png: the loss over the steps of a run, that of the held-out samples beside it, drawn with Pillow."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 960, 480, 70, 30, 20, 50  # pixels; the last four are margins
GREY, BLUE, PALE, RED = (110, 110, 110), (31, 90, 180), (190, 208, 235), (200, 70, 20)

Points = Sequence[tuple[int, float]]
"""Steps and the loss at each."""


def draw_loss(path: Path, training: Points, held_out: Points = ()) -> None:
    """Draw the training loss (pale), its running mean, and what the looks found on held-out samples.

    There is at least one point of training.
    """
    steps, losses = map(list, zip(*training, strict=True))
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    first, last = steps[0], max(steps[-1], steps[0] + 1)
    every = [*losses, *(loss for _, loss in held_out)]
    low, high = min(every), max(every)
    high = high if high > low else low + 1

    def place(step: float, loss: float) -> tuple[float, float]:
        across = (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        down = (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, TOP + down

    for i in range(5):
        step, loss = first + (last - first) * i / 4, low + (high - low) * i / 4
        x, y = place(step, loss)
        pen.line([(LEFT, y), (WIDTH - RIGHT, y)], (230, 230, 230))
        pen.text((LEFT - 8, y), f"{loss:.3g}", GREY, anchor="rm")
        pen.text((x, HEIGHT - BOTTOM + 8), f"{step:.0f}", GREY, anchor="mt")
    pen.text((LEFT, 8), "loss, nats for each target: in training", BLUE)
    if held_out:
        pen.text((LEFT + 230, 8), "on held-out samples", RED)
    pen.text((WIDTH - RIGHT, HEIGHT - 8), "step", GREY, anchor="rb")
    pen.line([place(*point) for point in training], PALE, 1)
    span = max(1, min(10, len(losses) // 4), len(losses) // 20)
    means = [sum(losses[max(0, i + 1 - span) : i + 1]) / min(span, i + 1) for i in range(len(losses))]
    pen.line([place(*point) for point in zip(steps, means, strict=True)], BLUE, 2)
    pen.line([place(*point) for point in held_out], RED, 2)
    for x, y in (place(*point) for point in held_out):
        pen.ellipse([x - 4, y - 4, x + 4, y + 4], RED)
    canvas.save(path)
