import json

import pytest

from vlm.errors import Unusable
from vlm.eval.compare import compare


def line(number, mark, answer="yes", pictures=("a",)):
    return {
        "question_id": f"q{number}", "category": "colour", "question": "Is it?", "references": ["yes"], "answer": answer,
        "mark": mark, "tokens": 1, "pictures": list(pictures), "sample": number, "blind": {},
    }  # fmt: skip


@pytest.fixture
def evaluated(tmp_path):
    """Write what stage 05 leaves of a run with these marks."""

    def write(run, marks, questions="hash", scorer="exact_match", task="t"):
        folder = tmp_path / run / "05_eval"
        (folder / "scored").mkdir(parents=True)
        lines = [line(i, mark, f"{run} says {mark}", (f"p{i}",)) for i, mark in enumerate(marks)]
        (folder / "scored" / f"{task}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        tasks = {task: {"scorer": scorer, "metric": "exact match", "questions": questions, "score": 1.0}}
        (folder / "metrics.json").write_text(json.dumps({"tasks": tasks}))
        (folder / "artifact.json").write_text("{}")

    return write


def test_two_runs_are_compared_question_by_question(evaluated, tmp_path, capsys):
    evaluated("a", [1.0] * 10 + [0.0] * 10)
    evaluated("b", [0.0] * 1 + [1.0] * 9 + [1.0] * 7 + [0.0] * 3)
    found = compare(tmp_path, "a", "b", 0)
    task = found.tasks["t"]
    assert (task.n, task.values, task.difference) == (20, (50.0, 80.0), 30.0)
    assert (task.gained, task.lost) == (7, 1)
    assert task.p == pytest.approx(2 * (1 + 8) / 2**8) and task.test == "exact McNemar"
    assert task.interval[0] < 30 < task.interval[1]
    written = json.loads((tmp_path / "compare" / "a_vs_b" / "compare.json").read_text())["tasks"]["t"]
    assert (written["same"], len(written["changed"])) == (12, 8)
    assert written["changed"][0]["b"] == {"answer": "b says 0.0", "mark": 0.0}
    assert "t: exact match 50.00 → 80.00, +30.00" in capsys.readouterr().out


def test_a_run_compared_with_itself_has_not_changed(evaluated, tmp_path):
    evaluated("a", [1.0, 0.3, 0.0])
    task = compare(tmp_path, "a", "a", 0).tasks["t"]
    assert (task.difference, task.interval, task.p, task.changed) == (0.0, (0.0, 0.0), 1.0, ())


def test_what_cannot_be_compared_is_refused(evaluated, tmp_path):
    evaluated("a", [1.0])
    evaluated("other_questions", [1.0], questions="others")
    evaluated("other_scorer", [1.0], scorer="yes_no")
    evaluated("other_task", [1.0], task="u")
    for run, fault in [
        ("absent", "absent/05_eval is not there"),
        ("other_questions", "different questions"),
        ("other_scorer", "different scorer"),
        ("other_task", "no task in common: t; u"),
    ]:
        with pytest.raises(Unusable, match=fault):
            compare(tmp_path, "a", run, 0)
    assert not (tmp_path / "compare").exists()
