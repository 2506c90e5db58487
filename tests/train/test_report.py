import json

import pytest

from vlm.config import TrainRuntime
from vlm.train.checkpoint import Progress
from vlm.train.flops import Cost
from vlm.train.report import Report

COST = Cost(token=1000)


def write(folder, resumed: Progress, steps: range) -> None:
    with Report(folder, "test", 6, 6, TrainRuntime(log_every=1, peak_tflops=1.0), resumed, COST) as report:
        for step in steps:
            report.step(
                Progress(step, step, step, step), loss=1.0 / step, grad_norm=1.0, lr={"projector": 0.1}, slots=4
            )


def test_a_resumed_run_drops_the_steps_it_does_again_and_a_torn_line(tmp_path):
    write(tmp_path, Progress(), range(1, 6))
    assert not (tmp_path / "loss.png").exists()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    write(tmp_path, Progress(step=3, samples=3, tokens=3, targets=3), range(4, 7))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0].keys() >= {
        "loss",
        "lr/projector",
        "tokens_per_second",
        "grad_norm",
        "mfu",
        "padding_share",
        "memory_bytes",
    }
    assert lines[0]["mfu"] == pytest.approx(lines[0]["tokens_per_second"] * 1000 / 1e12)
    assert lines[0]["padding_share"] == 0.75


def test_a_look_has_a_row_of_its_own_kind_and_goes_with_the_steps_that_are_done_again(tmp_path):
    with Report(tmp_path, "test", 6, 6, TrainRuntime(log_every=1), Progress(), COST) as report:
        for step in (1, 2, 3):
            report.step(Progress(step, step, step, step), loss=1.0, grad_norm=1.0, lr={"projector": 0.1}, slots=4)
            report.evaluation(step, {"held_out/loss": 2.0 / step, "seconds": 0.0})
    with Report(tmp_path, "test", 6, 6, TrainRuntime(log_every=1), Progress(step=2), COST) as report:
        found = report.rows()
    assert [(row["step"], row.get("kind")) for row in found] == [(s, k) for s in (1, 2) for k in (None, "evaluation")]
    assert found[-1]["held_out/loss"] == 1.0
    assert "loss" not in found[-1]  # readers of the training's loss pass it over


def test_the_time_of_a_look_is_not_counted_as_training(tmp_path):
    with Report(tmp_path, "test", 6, 6, TrainRuntime(log_every=1), Progress(), COST) as report:
        report.evaluation(0, {"held_out/loss": 2.0, "seconds": -1000.0})  # as if it had ended long ago
        report.step(Progress(1, 1, 1, 1), loss=1.0, grad_norm=1.0, lr={"projector": 0.1}, slots=4)
    assert report.rows()[-1]["seconds_per_step"] > 1000
