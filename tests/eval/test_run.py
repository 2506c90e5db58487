import json
import shutil

import pytest

from vlm.config import Blind, EvalConfig, EvalRuntime, TaskConfig
from vlm.errors import Unusable
from vlm.eval import run
from vlm.eval.run import evaluate

CONTENTS = {"metrics.json", "report.html", "scored/colours.jsonl", "predictions/colours.jsonl"} | {
    f"predictions/colours.{blind}.jsonl" for blind in ("shuffled", "removed")
}


@pytest.fixture
def runs(tiny_model, tmp_path):
    """A run folder as stages 03 and 04 leave it."""
    for stage in ("03_pretrain", "04_finetune"):
        (tmp_path / stage).mkdir()
        lines = [json.dumps({"step": step, "loss": 3 / step, "lr/projector": 1e-3}) + "\n" for step in (1, 2, 3)]
        (tmp_path / stage / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "04_finetune" / "model").symlink_to(tiny_model)
    return tmp_path


def settings(**of_task):
    tasks = {"colours": TaskConfig(**{"max_new_tokens": 4, "blind": list(Blind)} | of_task)}
    return EvalConfig(tasks=tasks, gallery=6, runtime=EvalRuntime(batch_size=8))


def test_an_evaluation_writes_predictions_metrics_and_report(runs, tiny_shards, capsys):
    out = runs / "05_eval.partial"
    out.mkdir()
    figures = evaluate(settings(), 0, "tiny", runs / "04_finetune", tiny_shards, out)
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == CONTENTS
    metrics = json.loads((out / "metrics.json").read_text())["tasks"]["colours"]
    assert metrics["n"] == 40 and set(metrics["categories"]) == {"colour", "existence"}
    assert figures["colours"]["score"] == metrics["score"]
    assert figures["colours"]["visual_gain_over_removed"] == metrics["blind"]["removed"]["visual_gain"]
    scored = [json.loads(line) for line in (out / "scored" / "colours.jsonl").read_text().splitlines()]
    assert sum(one["mark"] for one in scored) / 40 * 100 == metrics["score"]
    assert {len(one["pictures"]) for one in scored} == {0, 1, 2} and set(scored[0]["blind"]) == {"shuffled", "removed"}
    assert "03_pretrain" in (out / "report.html").read_text()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"report: {runs / '05_eval' / 'report.html'}"
    assert [line.split()[0] for line in printed[1:-1]] == ["colour", "existence", "colours"]


def test_a_killed_evaluation_that_goes_on_writes_the_same_files(runs, tiny_shards, monkeypatch):
    whole, killed = runs / "whole", runs / "killed"
    whole.mkdir()
    evaluate(settings(), 0, "tiny", runs / "04_finetune", tiny_shards, whole)
    shutil.copytree(whole, killed)
    lines = (killed / "predictions" / "colours.shuffled.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "predictions" / "colours.shuffled.jsonl").write_bytes(b"".join(lines[20:3:-1]) + lines[1][:9])
    (killed / "report.html").unlink()
    evaluate(settings(), 0, "tiny", runs / "04_finetune", tiny_shards, killed)
    for name in CONTENTS:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_without_shuffling_nothing_is_asked_twice(runs, tiny_shards, capsys):
    out = runs / "05_eval"
    out.mkdir()
    figures = evaluate(settings(blind=[]), 0, "tiny", runs / "04_finetune", tiny_shards, out)
    assert [path.name for path in (out / "predictions").iterdir()] == ["colours.jsonl"]
    assert not any("gain" in key for key in figures["colours"])


@pytest.mark.parametrize(
    ("cfg", "fault"),
    [
        (EvalConfig(), "no task is given"),
        (settings(split="absent_held_out"), "absent_held_out holds no shards"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_is_loaded(runs, tiny_shards, monkeypatch, cfg, fault):
    monkeypatch.setattr(run, "Answerer", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(Unusable, match=fault):
        evaluate(cfg, 0, "tiny", runs / "04_finetune", tiny_shards, runs)
