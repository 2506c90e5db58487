"""launch/all.sh on a cluster: the whole graph at once, what a failure does to it, and an array of tasks."""

import os
import re
import signal

import pytest

from vlm.pipeline.requeue import read_legs

from ..stages.conftest import STAGES
from .cluster import NODES, wait
from .conftest import Runs

pytestmark = pytest.mark.slow


def test_the_chain_on_two_nodes_ends_with_the_bytes_of_four_processes_here(runs: Runs, unbroken: str):
    code, said = runs.submit_chain("chain")
    assert code == 0, said
    assert all(runs.job("chain", stage) in said for stage in STAGES), said
    assert runs.wait("chain", "05_eval") == "COMPLETED", runs.status("chain")
    for stage in STAGES:
        assert runs.state("chain", stage) == "COMPLETED"
        assert runs.contents("chain", stage) == runs.contents(unbroken, stage), stage

    code, said = runs.submit_chain("chain")
    assert code == 0, said
    assert said.count("up to date") == len(STAGES), said
    assert not runs.queue("chain")


def test_a_failed_stage_cancels_what_follows_and_only_what_is_missing_is_submitted_again(
    runs: Runs, unbroken: str, tiny_corpus
):
    runs.copy(unbroken, "failing", ["00_tokenizer"])
    hidden = tiny_corpus.with_name("hidden")
    tiny_corpus.rename(hidden)
    try:
        code, said = runs.submit_chain("failing")
        assert code == 0, said
        assert re.search("00_tokenizer.*up to date", said), said
        assert runs.wait("failing", "05_eval") == "CANCELLED"
        assert runs.wait("failing", "01_assemble") == "COMPLETED"
    finally:
        hidden.rename(tiny_corpus)
    table = runs.status("failing")
    assert re.search(r"02_shard: CANCELLED: .*train\.json", table), table
    for stage in ("03_pretrain", "04_finetune", "05_eval"):
        assert re.search(f"{stage}: cancelled, since .* did not come to its end", table), table

    code, said = runs.submit_chain("failing")
    assert code == 0, said
    assert said.count("up to date") == 2, said
    queued = {name.split(".")[0] for name in runs.queue("failing")}
    runs.cancel("failing")
    assert queued == {"02_shard", "03_pretrain", "04_finetune", "05_eval"}


def test_of_an_array_of_tasks_one_that_fails_is_put_back_alone(runs: Runs, unbroken: str):
    runs.copy(unbroken, "array", ["00_tokenizer"])
    code, said = runs.submit("02_shard", "array", "cluster.single.array=3")
    assert code == 0, said
    shares = runs.record("array", "02_shard")["shares"]
    wanted = {"SLURM_ARRAY_JOB_ID": shares, "SLURM_ARRAY_TASK_ID": "1", "SLURM_STEP_ID": "0"}.items()

    def task() -> list[int]:
        return [
            process
            for node in NODES
            for process, environment in runs.slurm.processes(node).items()
            if wanted <= environment.items()
        ]

    wait("the second of three tasks", lambda: bool(task()), 120)
    for process in task():
        os.kill(process, signal.SIGKILL)
    assert runs.wait("array", "02_shard") == "COMPLETED", runs.log("array", "02_shard")
    assert runs.contents("array", "02_shard") == runs.contents(unbroken, "02_shard")
    legs = [read_legs(path) for path in (runs.folder / "array/jobs/02_shard").glob("*_legs.jsonl")]
    assert sorted([leg.is_failure for leg in those] for those in legs) == [[False], [False], [False], [True, False]]
