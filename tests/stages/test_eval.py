"""Stage 05 on two ranks, and killed while it answers."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..forked import Forked, Process
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
def pipeline(tiny_model: Path, tiny_corpus: Path, forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Stage 05 alone, which asks a model folder the questions of a file."""
    source = f"{{path: {tiny_corpus}/held_out.json, images: {tiny_corpus}/images}}"
    overrides = [f"eval.model={tiny_model}", f"eval.tasks.questions.sources=[{source}]", *TASK]
    return Pipeline(tmp_path_factory.mktemp("runs"), overrides, forked)


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline) -> dict[str, bytes]:
    """The files of one rank that was never killed."""
    code, said = pipeline.run("05_eval", run="alone")
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


def wait_for(pipeline: Pipeline, process: subprocess.Popen | Process, run: str, lines: int, pattern: str = "*") -> None:
    while len(answered(pipeline, run, pattern)) < lines:
        assert process.poll() is None, process.said() if isinstance(process, Process) else process.communicate()[0]
        time.sleep(0.002)


@pytest.mark.slow
def test_two_ranks_answer_as_one_does(pipeline, alone):
    code, said = pipeline.run("05_eval", run="two", ranks=2)
    assert code == 0, said
    assert files(pipeline, "two") == alone
    predictions = pipeline.runs / "two" / "05_eval" / "predictions"
    assert sorted(file.name for file in predictions.iterdir()) == ["questions.jsonl", "questions.shuffled.jsonl"]


@pytest.mark.slow
def test_a_rank_is_killed_while_it_answers_and_another_goes_on(pipeline, alone):
    process = pipeline.start("05_eval", run="killed_rank", ranks=2)
    wait_for(pipeline, process, "killed_rank", 4, "questions.rank1")
    os.kill(rank_of(process, 1), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert 4 <= len(set(answered(pipeline, "killed_rank"))) < ALL
    code, said = pipeline.fork("05_eval", run="killed_rank").wait()
    assert code == 0, said
    assert files(pipeline, "killed_rank") == alone


@pytest.mark.slow
def test_killed_while_it_answers_it_goes_on_and_answers_nothing_twice(pipeline, alone):
    for lines in (9, 55):
        process = pipeline.fork("05_eval", run="killed")
        wait_for(pipeline, process, "killed", lines)
        process.kill()
        process.wait()
        before = answered(pipeline, "killed")
        assert lines <= len(set(before)) == len(before) < ALL
    code, said = pipeline.fork("05_eval", run="killed").wait()
    assert code == 0, said
    assert files(pipeline, "killed") == alone


def rank_of(launcher: subprocess.Popen, rank: int) -> int:
    """Return the process id of a rank that torchrun has started."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has started no rank {rank}")
