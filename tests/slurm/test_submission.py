"""Submission to a cluster: who may submit a run, and what SLURM refuses."""

import shutil

import pytest

from .conftest import Runs

pytestmark = pytest.mark.slow


def test_of_two_submissions_at_once_one_wins_and_the_other_is_told(runs: Runs):
    first, second = runs.start_chain("twice"), runs.start_chain("twice")
    said = [process.communicate(timeout=180)[0] for process in (first, second)]
    queued = runs.queue("twice")
    runs.cancel("twice")
    assert [first.returncode, second.returncode] == [0, 0], said
    assert len(set(queued)) == len(queued)
    told = [text for text in said if "already" in text]
    assert len(told) == 1, said


REFUSED = {
    "partition": (["cluster.partition=nowhere"], "invalid partition"),
    "account": (["cluster.account=nobody"], "Invalid account"),
    "qos": (["cluster.qos=gold"], "Invalid qos"),
    "limit": (["cluster.qos=small", "cluster.single.cpus=2"], "violates accounting/QOS policy"),
    "gpus": (["+cluster.additional_parameters.gres=gpu:9"], "node configuration is not available"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_slurm_refuses_is_said_in_one_line_with_its_own_words(runs: Runs, kind: str):
    more, words = REFUSED[kind]
    run = f"refused_{kind}"
    code, said = runs.submit("00_tokenizer", run, *more)
    assert code == 1
    assert words.lower() in said.lower()
    assert said.count("\n") == 1
    assert not runs.queue(run)


def test_a_log_folder_that_cannot_be_made_is_said_before_anything_is_queued(runs: Runs):
    code, said = runs.submit("00_tokenizer", "r", "runs=/proc/runs")
    assert (code, said.count("\n")) == (1, 1)
    assert "/proc/runs" in said
    assert not runs.queue("r")


def test_without_sbatch_on_this_machine_one_line_says_so(runs: Runs, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python").symlink_to(shutil.which("python"))
    code, said = runs.submit("00_tokenizer", "r", path=str(tools))
    assert (code, said.count("\n")) == (1, 1)
    assert "sbatch" in said
