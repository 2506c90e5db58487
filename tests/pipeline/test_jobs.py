import subprocess
import sys

import pytest

from vlm.errors import Unusable
from vlm.pipeline import jobs
from vlm.pipeline.jobs import Job, State


def job(**more) -> Job:
    return Job("01_y", "01_y.r.abc", "k", {"seed": 0}, {}, "1 task", "me", "now", **more)


def test_a_record_comes_back_as_it_was(tmp_path):
    jobs.save(tmp_path, job(job_id="7", waits_for={"00_x": "6"}))
    assert jobs.load(tmp_path, "01_y") == job(job_id="7", waits_for={"00_x": "6"})
    assert jobs.load(tmp_path, "02_z") is None
    assert [one.stage for one in jobs.load_all(tmp_path)] == ["01_y"]


def test_a_job_whose_submitter_was_killed_is_found_by_its_name(tmp_path, answers):
    jobs.save(tmp_path, job())
    answers(squeue=[0, "12\n", ""])
    assert jobs.load(tmp_path, "01_y").job_id == "12"
    answers()
    assert jobs.load(tmp_path, "01_y").job_id == "12"


def test_states_are_those_of_squeue_then_of_sacct(answers):
    listed = "7|7|RUNNING|None|9:00|node1\n9|8|PENDING|Priority|10:00|\n8|8|COMPLETED|None|0:00|\n"
    answers(squeue=[0, listed, ""], sacct=[0, "CANCELLED by 0|\n", ""])
    assert jobs.states(["7", "8", "5"]) == {
        "7": State("RUNNING", "None", "9:00", "node1"),
        "8": State("PENDING", "Priority", "10:00", ""),
        "5": State("CANCELLED"),
    }
    answers(squeue=[1, "", "slurm_load_jobs error: Invalid job id specified\n"], sacct=[1, "", "disabled"])
    assert jobs.states(["5"]) == {"5": State(jobs.UNKNOWN)}


@pytest.mark.parametrize(
    ("state", "is_live"),
    [
        (State("RUNNING"), True),
        (State("PENDING", "Dependency"), True),
        (State("COMPLETING"), True),
        (State("PENDING", "DependencyNeverSatisfied"), False),
        (State("FAILED"), False),
        (State(jobs.UNKNOWN), False),
    ],
)
def test_a_job_is_live_while_it_can_still_run(state, is_live):
    assert state.is_live is is_live


def test_a_failing_command_is_told_in_slurms_own_words(answers):
    answers(squeue=[1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"])
    with pytest.raises(Unusable, match=r"^SLURM: Unable to contact slurm controller \(connect failure\)$"):
        jobs.states(["7"])


def test_the_lock_lets_one_submitter_at_a_time_in_and_ends_with_its_process(tmp_path):
    script = f"import time; from pathlib import Path; from vlm.pipeline import jobs\nwith jobs.locked(Path({str(tmp_path)!r})):\n print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    waiting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    other.kill()
    assert waiting.stdout.readline() == "in\n"
    waiting.kill()
    other.wait(), waiting.wait()
    with jobs.locked(tmp_path), jobs.locked(tmp_path):  # within one process it is held once
        pass


def test_a_folder_of_logs_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "jobs").write_text("")
    with pytest.raises(Unusable, match="jobs cannot be written, and the logs of jobs go there: File exists"):
        jobs.folder_of(tmp_path)
