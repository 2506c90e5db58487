"""Random kills over the whole chain: ranks and what they started, a node's slurmd, the submitting process.

KILLS=20 python -m pytest -s -m "" tests/slurm/test_kills.py        twenty instead of four; prints a table
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from ..stages.conftest import STAGES
from .cluster import NODES, wait
from .conftest import Runs

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("KILLS", "4"))
SEED = int(os.environ.get("SEED", "0"))
PATIENT = ["wait=true", "cluster.max_failures=50", "cluster.max_idle_failures=50"]


def test_after_random_kills_every_stage_is_whole_and_was_made_once(runs: Runs, unbroken: str):
    chance = random.Random(SEED)
    run, began, killed = f"kills_{KILLS}", time.monotonic(), Counter()
    submitter = runs.start_chain(run, *PATIENT)
    print(f"\n{'second':>6}  {'killed':<10} what it was; what was running")
    with runs.slurm.slow_network("8mbit"):
        while killed.total() < KILLS and whole(runs, run) < len(STAGES):
            goal = killed.total() * len(STAGES) // KILLS  # as many kills in each stage
            await_stages(runs, run, goal, submitter)
            time.sleep(chance.uniform(2, 12))
            kind = chance.choices(list(KINDS), weights=[2, 1, 1])[0]
            busy = " ".join(runs.slurm.run("squeue", "-ho%.20j", "--states=running").split())
            if victim := KINDS[kind](runs, run, submitter, chance):
                killed[kind] += 1
                print(f"{time.monotonic() - began:6.0f}  {kind:<10} {victim}; {busy or 'nothing'}", flush=True)
            if submitter.poll() is not None:
                submitter = runs.start_chain(run, *PATIENT)
    said, _ = submitter.communicate(timeout=1200)
    assert submitter.returncode == 0, said
    for stage in STAGES:
        assert runs.contents(run, stage) == runs.contents(unbroken, stage), stage
    wait("the record of the last", lambda: completed(runs, run)["05_eval"] > 0)
    made = completed(runs, run)
    print(f"{killed.total()} kills {dict(killed)} in {time.monotonic() - began:.0f} s; completed {dict(made)}")
    assert made == Counter(STAGES) + Counter({"02_shard.shares": 2})
    assert killed.total() == KILLS


def test_a_job_whose_helper_is_killed_is_put_back(runs: Runs, unbroken: str):
    run = "helper"
    runs.copy(unbroken, run, ["00_tokenizer"])
    code, said = runs.submit("01_assemble", run)
    assert code == 0, said
    wait("the process of the gate", lambda: kill_by_words(runs, run, "vlm.model.fresh"), 120)
    assert runs.wait(run, "01_assemble") == "COMPLETED", runs.log(run, "01_assemble")
    assert "killed by SIGKILL" in runs.log(run, "01_assemble")
    assert runs.contents(run, "01_assemble") == runs.contents(unbroken, "01_assemble")


def await_stages(runs: Runs, run: str, number: int, submitter: Popen) -> None:
    """Wait until so many stages have left their artifact, as long as their submission is followed."""
    wait(f"{number} stages", lambda: whole(runs, run) >= number or submitter.poll() is not None, 600)
    assert whole(runs, run) >= number, submitter.stdout.read()


def whole(runs: Runs, run: str) -> int:
    """Return how many stages have left their artifact."""
    return sum((runs.folder / run / stage).exists() for stage in STAGES)


def completed(runs: Runs, run: str) -> Counter:
    """Return how often a job of each stage came to its end, by the stage; the tasks of an array for themselves."""
    rows = runs.slurm.run("sacct", "-nPX", "--format=jobname%60,state").splitlines()
    names = [row.split("|")[0] for row in rows if f".{run}." in row and row.endswith("|COMPLETED")]
    return Counter(name.split(".")[0] + ".shares" * name.endswith(".shares") for name in names)


def kill_task(runs: Runs, run: str, submitter: Popen, chance: random.Random) -> str | None:
    """Kill one process of a task of this run: a rank, or one that it started itself."""
    found = [
        (node, process, environment)
        for node in NODES
        for process, environment in runs.slurm.processes(node).items()
        if f".{run}." in environment.get("SLURM_JOB_NAME", "") and "SLURM_STEP_ID" in environment
    ]
    if not found:
        return None
    node, process, environment = chance.choice(sorted(found, key=lambda one: one[:2]))
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:  # it has just ended by itself
        return None
    return f"a process of rank {environment['SLURM_PROCID']} on {node}"


def kill_by_words(runs: Runs, run: str, words: str) -> bool:
    """Kill a process of this run that has these words in its command line; say whether there was one."""
    for node in NODES:
        for process, environment in runs.slurm.processes(node).items():
            command = Path(f"/proc/{process}/cmdline")
            if f".{run}." in environment.get("SLURM_JOB_NAME", "") and words in command.read_text(errors="replace"):
                os.kill(process, signal.SIGKILL)
                return True
    return False


def kill_slurmd(runs: Runs, run: str, submitter: Popen, chance: random.Random) -> str:
    """Stop one node's slurmd, for a moment or until SLURM has taken the node for dead."""
    node, moment = chance.choice(NODES[:2]), chance.choice([1, 20])
    runs.slurm.stop_slurmd(node)
    time.sleep(moment)
    runs.slurm.boot(node)
    return f"{node}, for {moment} s"


def kill_submitter(runs: Runs, run: str, submitter: Popen, chance: random.Random) -> str | None:
    """Kill the process that submits and follows; the loop starts it again."""
    if submitter.poll() is not None:
        return None
    os.killpg(submitter.pid, signal.SIGKILL)
    submitter.wait()
    return "launch/all.sh"


KINDS: dict[str, Callable[[Runs, str, Popen, random.Random], str | None]] = {
    "task": kill_task,
    "slurmd": kill_slurmd,
    "submitter": kill_submitter,
}
