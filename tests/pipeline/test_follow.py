import json

import pytest

from vlm.errors import Unusable
from vlm.pipeline import follow, jobs
from vlm.pipeline.jobs import Job


def job(stage: str, number: str, **waits_for: str) -> Job:
    names = {"s" + name: other for name, other in waits_for.items()}
    return Job(stage, f"{stage}.r.a", "k", {}, {}, "1 task", "me", "now", job_id=number, waits_for=names)


@pytest.fixture
def root(tmp_path):
    """A run whose first stage is whole, whose second trains, and whose third waits."""
    root = tmp_path / "r"
    (root / "s0").mkdir(parents=True)
    (root / "s0/artifact.json").write_text(json.dumps({"key": "k", "settings": {}, "inputs": {}}))
    (root / "s1.partial/checkpoints/step_000010").mkdir(parents=True)
    (root / "s1.partial/checkpoints/step_000010/progress.json").write_text('{"steps": 100}')
    rows = [{"step": 20, "loss": 1.5, "seconds_per_step": 2.0}, {"step": 20, "kind": "evaluation"}]
    (root / "s1.partial/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3')
    return root


@pytest.fixture
def submitted(root, monkeypatch):
    found = [job("s0", "6"), job("s1", "7", **{"0": "6"}), job("s2", "8", **{"1": "7"})]
    monkeypatch.setattr(jobs, "load_all", lambda _: found)
    return found


def test_the_table_shows_where_each_job_stands(root, submitted, answers, capsys):
    answers(squeue=[0, "7|7|RUNNING|None|1:00|n\n8|8|PENDING|Dependency|1:00|\n", ""])
    assert follow.show(root, wait=False) == 0
    _, head, *rows = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    rows = [[word.strip() for word in row if word.strip()] for row in rows]
    assert rows[0][:3] == ["s0", "6", "COMPLETED"]
    assert rows[1][:6] == ["s1", "7", "RUNNING", "20/100", "1.5000", "0:02:40"]
    assert rows[2][:4] == ["s2", "8", "PENDING (Dependency)", "s1"]


def test_a_failure_is_told_with_its_reason_and_what_waited_for_it_is_cancelled(root, submitted, answers, capsys):
    logs = root / "jobs/s1"
    logs.mkdir(parents=True)
    (logs / "7_0_log.out").touch()
    (logs / "7_legs.jsonl").write_text('{"restart": 0, "status": 1, "progress": 9, "why": "the loss is no number"}\n')
    answers(squeue=[0, "7|7|FAILED|NonZeroExitCode|0:00|\n8|8|CANCELLED|Dependency|0:00|\n", ""])
    assert follow.show(root, wait=True) == 1
    *_, failed, cancelled = capsys.readouterr().out.splitlines()
    assert failed.startswith("s1: FAILED: the loss is no number (")
    assert cancelled == "s2: cancelled, since s1 did not come to its end"


def test_following_ends_with_the_jobs(root, submitted, answers, capsys, monkeypatch):
    answers(squeue=[0, "7|7|RUNNING|None|1:00|n\n", ""])

    def finish(seconds: float) -> None:  # waiting for squeue's answer sleeps too, for less
        for stage in ("s1", "s2") if seconds == follow.EVERY else ():
            (root / stage).mkdir(exist_ok=True)
            (root / stage / "artifact.json").write_text((root / "s0/artifact.json").read_text())

    monkeypatch.setattr(follow.time, "sleep", finish)
    assert follow.show(root, wait=True) == 0
    assert capsys.readouterr().out.count("COMPLETED") == 1 + 3


def test_ctrl_c_leaves_the_jobs_and_says_how_to_go_on(root, submitted, answers, capsys, monkeypatch):
    answers(squeue=[0, "7|7|RUNNING|None|1:00|n\n", ""])
    monkeypatch.setattr(follow.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert follow.show(root, wait=True) == 130
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.endswith(f"launch/status.sh run=r runs={root.parent} wait=true    cancel them: scancel 7 8")


def test_a_job_that_left_no_log_points_to_the_disk(root, submitted, answers, capsys):
    answers(squeue=[0, "7|7|FAILED|RaisedSignal:53(Real-time_signal_19)|0:00|\n", ""])
    follow.show(root, wait=False)
    assert "s1: FAILED: it left no log: can the nodes write" in capsys.readouterr().out


def test_a_run_without_jobs_is_named(tmp_path):
    with pytest.raises(Unusable, match="r has no jobs: submit some with"):
        follow.show(tmp_path / "r", wait=False)
