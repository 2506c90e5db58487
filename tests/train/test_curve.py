import numpy as np
import pytest
from PIL import Image

from vlm.train.curve import BLUE, draw_loss


@pytest.mark.parametrize(("steps", "losses"), [([1], [2.0]), ([1, 2], [3.0, 3.0]), (list(range(100)), [5.0] * 100)])
def test_any_run_gives_a_picture(tmp_path, steps, losses):
    draw_loss(tmp_path / "loss.png", steps, losses)
    assert Image.open(tmp_path / "loss.png").size == (960, 480)


def test_a_falling_loss_is_a_falling_line(tmp_path):
    draw_loss(tmp_path / "loss.png", list(range(100)), [100.0 - i for i in range(100)])
    rows, columns = np.nonzero((np.asarray(Image.open(tmp_path / "loss.png")) == BLUE).all(-1))
    assert rows[columns < 200].max() < rows[columns > 800].min()
