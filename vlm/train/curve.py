"""loss.png: the loss over the steps of a run, drawn with Pillow."""

from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 960, 480, 70, 30, 20, 50  # pixels; the last four are margins
GREY, BLUE, PALE = (110, 110, 110), (31, 90, 180), (190, 208, 235)


def draw_loss(path: Path, steps: list[int], losses: list[float]) -> None:
    """Draw the loss (pale) and its running mean over a twentieth of the points; at least one point."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    first, last = steps[0], max(steps[-1], steps[0] + 1)
    low, high = min(losses), max(losses)
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
    pen.text((LEFT, 8), "loss, nats for each target", GREY)
    pen.text((WIDTH - RIGHT, HEIGHT - 8), "step", GREY, anchor="rb")
    pen.line([place(*point) for point in zip(steps, losses, strict=True)], PALE, 1)
    span = max(1, len(losses) // 20)
    means = [sum(losses[max(0, i + 1 - span) : i + 1]) / min(span, i + 1) for i in range(len(losses))]
    pen.line([place(*point) for point in zip(steps, means, strict=True)], BLUE, 2)
    canvas.save(path)
