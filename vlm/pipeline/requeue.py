"""At the end of a job's batch script: whether the job is put back into the queue, and when.

    python -m vlm.pipeline.requeue LEGS ARTIFACT STATUS …     (written into the script by vlm/pipeline/cluster.py)

    status 0   done
    1, 2       bad settings, bad data, a loss that is no number: the same would come again, so it is not put back
    3          a signal came (time limit, preemption, scancel --signal) and the work saved: put back at once
    others     a killed rank, a hang (75), a lost connection: put back after a growing delay, a few times, and only
               if the work got further than when it last failed

The first rank that ends ends the others, so their status may hide its own: a rank leaves what it ended with in a file,
its verdict, which counts. A node that fails takes this script with it; SLURM itself then puts the job back.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vlm.errors import Stopped, Unusable

VERDICT = "VLM_VERDICT"  # variable: the file in which a rank leaves the sentence that it ended with


@dataclass(frozen=True)
class Leg:
    """How one stretch of a job between two starts ended."""

    restart: int  # how often the job had been put back before
    status: int
    progress: int  # of the artifact, see `progress_of`
    is_failure: bool = False
    put_back: bool = False
    delay: int = 0  # seconds
    why: str = ""


@dataclass(frozen=True)
class Limits:
    """The settings of the same names (vlm/config/cluster.py)."""

    max_requeues: int
    max_failures: int
    max_idle_failures: int
    retry_seconds: int


def decide(status: int, words: str, progress: int, restart: int, before: Sequence[Leg], limits: Limits) -> Leg:
    """Say what becomes of a job whose ranks ended with `status` and last `words`, after the legs `before`."""
    if status == 0:
        return Leg(restart, status, progress, why="done")
    if status in (1, 2):
        return Leg(restart, status, progress, why=words or "the same would come again")
    if status == Stopped.status:
        if restart >= limits.max_requeues:
            return Leg(restart, status, progress, why=f"saved, but put back {restart} times already: submit it again")
        return Leg(restart, status, progress, put_back=True, why="saved at a signal")
    failures = [leg for leg in before if leg.is_failure]
    idle = 0
    for leg in reversed(failures):
        if leg.progress != progress:
            break
        idle += 1
    number = len(failures) + 1
    if number > limits.max_failures:
        return Leg(restart, status, progress, True, why=f"failed {number} times (cluster.max_failures)")
    if idle > 0 and idle >= limits.max_idle_failures:
        return Leg(restart, status, progress, True, why="failed again without having got further")
    delay = limits.retry_seconds * 2 ** (number - 1)
    return Leg(restart, status, progress, True, True, delay, f"failure {number} of at most {limits.max_failures}")


def progress_of(artifact: Path) -> int:
    """Return how far an artifact has come: the step of its newest checkpoint, else how many files it has."""
    partial = artifact.with_name(artifact.name + ".partial")
    steps = [int(path.name.removeprefix("step_")) for path in partial.glob("checkpoints/step_*[0-9]")]
    if steps or artifact.name[:2] in ("03", "04"):
        return max(steps, default=0)
    return sum(path.is_file() for path in partial.rglob("*"))


def read_legs(path: Path) -> list[Leg]:
    """Return the legs of a job so far."""
    return [Leg(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def is_job() -> bool:
    """Say whether this process is a task of a job."""
    return VERDICT in os.environ


def leave_verdict(problem: Unusable) -> None:
    """Leave, inside a job, the status and the sentence of an error; one that would come again outweighs others."""
    path = os.environ.get(VERDICT)
    if path and problem.status in (Unusable.status, Stopped.status):
        with Path(path).open("a") as file:
            file.write(f"{problem.status} {problem}\n")


def take_verdict(path: Path, status: int) -> tuple[int, str]:
    """Return what the ranks ended with, status and words: as they left it in a file, else the status of the step."""
    left = sorted(path.read_text().splitlines()) if path.is_file() else []
    path.unlink(missing_ok=True)
    if not left or not status:
        return status, ""
    number, _, words = left[0].partition(" ")
    return int(number), words


def may_be_put_back(job: str, restart: int) -> bool:
    """Say whether SLURM still regards this start of the job as running, or as ended by its time limit.

    It does not if the job was cancelled or put back; nor if it runs elsewhere since SLURM lost sight of this node.
    """
    shown = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True).stdout
    fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if fields.get("Restarts") != str(restart):
        return False
    return fields.get("JobState") == "RUNNING" or fields.get("Reason") == "TimeLimit"


def put_back(job: str, delay: int) -> str | None:
    """Requeue a job, to start after `delay` seconds; return what SLURM says against it."""
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if answer.returncode:
        return answer.stderr.strip()
    if delay:  # it is pending now; this process has until SLURM's KillWait is over
        subprocess.run(["scontrol", "update", f"JobId={job}", f"StartTime=now+{delay}"], capture_output=True)
    return None


def main() -> None:
    """Decide, record the decision beside the logs, and do it; the exit status is that of the ranks."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job that is put back is terminated, this process too
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("legs", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("status", type=int)
    for name in Limits.__annotations__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, required=True)
    asked = parser.parse_args()
    limits = Limits(**{name: getattr(asked, name) for name in Limits.__annotations__})
    status, words = take_verdict(Path(os.environ[VERDICT]), asked.status)
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    leg = decide(status, words, progress_of(asked.artifact), restart, read_legs(asked.legs), limits)
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    if leg.put_back and not may_be_put_back(job, restart):
        leg = Leg(restart, status, leg.progress, why="cancelled, or put back by SLURM itself")
    with asked.legs.open("a") as file:
        file.write(json.dumps(asdict(leg)) + "\n")
    if asked.status:
        print(f"job {job} ended with status {leg.status} at progress {leg.progress}: {leg.why}", flush=True)
    if leg.put_back:
        print(f"job {job} is put back, to start in {leg.delay} s", flush=True)
        if problem := put_back(job, leg.delay):
            print(f"job {job} cannot be put back: {problem}", flush=True)
    sys.exit(asked.status)


if __name__ == "__main__":
    main()
