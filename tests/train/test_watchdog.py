import subprocess
import sys

from vlm.train.watchdog import HUNG

PROGRAM = """
import time
from vlm.train.watchdog import Watchdog

def take_a_step_that_never_ends():
    time.sleep(60)

with Watchdog(minutes=1 / 60) as watchdog:
    for _ in range(3):
        time.sleep(0.5)
        watchdog.beat()
    print("three steps", flush=True)
    {last}
"""


def run(last: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", PROGRAM.format(last=last)]
    return subprocess.run(program, capture_output=True, text=True, timeout=30)


def test_a_run_that_hangs_says_where_and_ends_with_a_status_of_its_own():
    hung = run("take_a_step_that_never_ends()")
    assert hung.returncode == HUNG == 75
    assert "three steps" in hung.stdout
    assert "no step within" in hung.stderr and "in take_a_step_that_never_ends" in hung.stderr


def test_a_run_that_steps_is_left_alone():
    assert run("pass").returncode == 0
