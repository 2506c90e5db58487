import json
import re

import pytest

from vlm.eval.charts import Curve, curve_panel, read_curve


def test_a_curve_is_read_from_whole_lines_with_a_step_and_a_loss(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 10, "loss": 3.5, "lr/projector": 1e-3, "lr/lora": 2e-3},
        {"note": "saved"},
        {"step": 10, "kind": "evaluation", "held_out/loss": 3.75},
        {"step": 20, "loss": 2, "lr": 1e-4},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "lo')
    assert read_curve(path) == Curve((10, 20), (3.5, 2.0), (2e-3, 1e-4), ((10, 3.75),))


@pytest.mark.parametrize("text", [None, "", '{"step": 1, "loss": 2.0}\n'])
def test_less_than_two_points_are_no_curve(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    assert read_curve(path) is None


@pytest.mark.parametrize(
    "losses",
    [(3.0, 2.0, 1.0), (0.0, 0.0, 0.0), (float("nan"), 2.0, 1.0), (1e6, 1e-3, 1e-3), (1.0, float("inf"), 1.0)],
)
def test_a_curve_stays_inside_its_drawing(losses):
    drawing = curve_panel("a <b>", Curve((1, 2, 3), losses, (1e-3, 5e-4, 0.0), ((2, 4.0), (9, 1e9))))
    assert "a &lt;b&gt;" in drawing and "nan," not in drawing and ",nan" not in drawing
    points = re.findall(r"[ML]([\d.-]+),([\d.-]+)", drawing)
    assert len(points) == 11
    assert all(0 <= float(x) <= 420 and 0 <= float(y) <= 220 for x, y in points)
