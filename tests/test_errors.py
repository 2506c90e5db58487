"""A program that was started for a part of the work: what its end means for the work."""

import subprocess
import sys

import pytest

from vlm.errors import Hindered, Unusable, require_success


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_success_is_no_error():
    require_success(run("pass"), "a part")


def test_a_killed_program_hinders_for_now_so_that_a_job_is_put_back():
    with pytest.raises(Hindered, match=r"^a part: killed by SIGKILL, perhaps for its memory: run again$"):
        require_success(run("import os; os.kill(os.getpid(), 9)"), "a part")


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise ValueError('no such file')", "ValueError: no such file"), ("exit(2)", "no reason given")],
)
def test_a_failed_program_would_fail_again(code: str, reason: str):
    with pytest.raises(Unusable, match=f"^a part: {reason}$") as caught:
        require_success(run(code), "a part")
    assert caught.value.status == Unusable.status
