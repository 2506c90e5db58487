"""Stage 05 on two ranks, and killed while it answers."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Pipeline

TASK = ("eval.tasks.questions.max_new_tokens=24", "eval.tasks.questions.blind=[shuffled]", "eval.runtime.batch_size=4")
FILES = (
    "predictions/questions.jsonl",
    "predictions/questions.shuffled.jsonl",
    "scored/questions.jsonl",
    "metrics.json",
)
ALL = 80  # answers, with and without the right pictures


@pytest.fixture(scope="module")
def evaluations(pipeline: Pipeline, whole_run: Path):
    """Make a run that is ready for stage 05."""

    def make(name: str) -> str:
        for stage in ("02_shard", "04_finetune"):
            shutil.copytree(whole_run / stage, pipeline.runs / name / stage)
        return name

    return make


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline, evaluations) -> dict[str, bytes]:
    """The files of one rank that was never killed."""
    code, said = pipeline.run("05_eval", *TASK, run=evaluations("alone"))
    assert code == 0, said
    return files(pipeline, "alone")


def files(pipeline: Pipeline, run: str) -> dict[str, bytes]:
    return {name: (pipeline.runs / run / "05_eval" / name).read_bytes() for name in FILES}


def answered(pipeline: Pipeline, run: str, pattern: str = "*") -> list[str]:
    """Return the question of every whole line of predictions so far, and the condition it was asked in."""
    folder = pipeline.runs / run / "05_eval.partial" / "predictions"
    lines = [
        (file.name.split(".rank")[0], line)
        for file in folder.glob(f"{pattern}.jsonl")
        for line in file.read_bytes().split(b"\n")[:-1]
    ]
    return [f"{condition} {json.loads(line)['question_id']}" for condition, line in lines]


def wait_for(pipeline: Pipeline, process: subprocess.Popen, run: str, lines: int, pattern: str = "*") -> None:
    while len(answered(pipeline, run, pattern)) < lines:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


@pytest.mark.slow
def test_two_ranks_answer_as_one_does(pipeline, evaluations, alone):
    code, said = pipeline.run("05_eval", *TASK, run=evaluations("two"), ranks=2)
    assert code == 0, said
    assert files(pipeline, "two") == alone
    predictions = pipeline.runs / "two" / "05_eval" / "predictions"
    assert sorted(file.name for file in predictions.iterdir()) == ["questions.jsonl", "questions.shuffled.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 2])
def test_a_rank_is_killed_while_it_answers_and_others_go_on(pipeline, evaluations, alone, then):
    run = evaluations(f"killed_then_{then}")
    process = pipeline.start("05_eval", *TASK, run=run, ranks=2)
    wait_for(pipeline, process, run, 4, "questions.rank1")
    os.kill(rank_of(process, 1), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert 4 <= len(set(answered(pipeline, run))) < ALL
    code, said = pipeline.run("05_eval", *TASK, run=run, ranks=then)
    assert code == 0, said
    assert files(pipeline, run) == alone


@pytest.mark.slow
def test_killed_while_it_answers_it_goes_on_and_answers_nothing_twice(pipeline, evaluations, alone):
    run = evaluations("killed")
    for lines in (9, 37, 66):
        process = pipeline.start("05_eval", *TASK, run=run)
        wait_for(pipeline, process, run, lines)
        process.kill()
        process.communicate()
        before = answered(pipeline, run)
        assert lines <= len(set(before)) == len(before) < ALL
    code, said = pipeline.run("05_eval", *TASK, run=run)
    assert code == 0, said
    assert files(pipeline, run) == alone


def rank_of(launcher: subprocess.Popen, rank: int) -> int:
    """Return the process id of a rank that torchrun has started."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has started no rank {rank}")
