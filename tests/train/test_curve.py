import numpy as np
import pytest
from PIL import Image

from vlm.train.curve import BLUE, RED, draw_loss


@pytest.mark.parametrize(("steps", "losses"), [([1], [2.0]), ([1, 2], [3.0, 3.0]), (list(range(100)), [5.0] * 100)])
def test_any_run_gives_a_picture(tmp_path, steps, losses):
    draw_loss(tmp_path / "loss.png", list(zip(steps, losses, strict=True)))
    assert Image.open(tmp_path / "loss.png").size == (960, 480)


def test_a_falling_loss_is_a_falling_line(tmp_path):
    draw_loss(tmp_path / "loss.png", [(i, 100.0 - i) for i in range(100)])
    rows, columns = np.nonzero((np.asarray(Image.open(tmp_path / "loss.png")) == BLUE).all(-1))
    assert rows[columns < 200].max() < rows[columns > 800].min()


def test_a_held_out_loss_that_rises_is_a_line_of_its_own(tmp_path):
    training, held_out = [(i, 100.0 - i) for i in range(100)], [(20, 80.0), (50, 90.0), (99, 120.0)]
    draw_loss(tmp_path / "loss.png", training, held_out)
    rows, columns = np.nonzero((np.asarray(Image.open(tmp_path / "loss.png")) == RED).all(-1))
    drawn = rows > 30  # below the legend
    assert rows[drawn & (columns < 300)].min() > rows[drawn & (columns > 900)].max()
