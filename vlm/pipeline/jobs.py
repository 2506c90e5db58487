"""What is known of a run's jobs on a cluster: a record for each stage, and what SLURM says of it.

    runs/<run>/jobs/03_pretrain.json          the record of the stage's last submission
    runs/<run>/jobs/03_pretrain.frozen.yaml   the settings it runs on
    runs/<run>/jobs/03_pretrain/              logs, JOB_RANK_log.out; JOB_submission.sh; JOB_legs.jsonl

A record is written before SLURM is asked, without a number, and again with it. Who finds one without a number, because
its submitter was killed in between, looks for the job by its name, which is used once.
"""

import fcntl
import json
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm.errors import Unusable
from vlm.files import write_whole
from vlm.pipeline.artifact import Identity

FOLDER = "jobs"
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
UNKNOWN = "UNKNOWN"  # gone from SLURM's memory
_held: set[Path] = set()  # runs whose lock this process holds


@dataclass(frozen=True)
class Job:
    """One stage's submission."""

    stage: str
    name: str  # in SLURM; used once
    key: str  # of the artifact that it will make
    settings: dict[str, Any]
    inputs: dict[str, str]
    resources: str
    user: str
    submitted: str  # ISO 8601, UTC
    job_id: str | None = None  # null from the moment before SLURM was asked until it answered
    shares: str | None = None  # the array whose tasks share the stage; the job itself then finishes it
    waits_for: dict[str, str] = field(default_factory=dict)  # stage -> job


@dataclass(frozen=True)
class State:
    """What SLURM says of a job."""

    word: str  # PENDING, RUNNING, COMPLETED, …
    reason: str = ""
    left: str = ""  # of its time limit
    nodes: str = ""

    @property
    def is_live(self) -> bool:
        """Say whether the job is queued or running, or can be again."""
        return self.word not in ENDED and self.word != UNKNOWN and self.reason != "DependencyNeverSatisfied"


def folder_of(root: Path) -> Path:
    """Return the folder of a run's jobs, made if it was missing.

    Raises Unusable if it cannot be written.
    """
    folder = root / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as problem:
        raise Unusable(f"{folder} cannot be written, and the logs of jobs go there: {problem.strerror}") from None
    return folder


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold a run's submission lock, waiting for another submitter; it is the kernel's and ends with its process."""
    path = folder_of(root) / ".lock"
    if path in _held:
        yield
        return
    with path.open("w") as handle:
        fcntl.lockf(handle, fcntl.LOCK_EX)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def load(root: Path, stage: str) -> Job | None:
    """Return the record of a stage's last submission, with the number of a job whose submitter was killed."""
    path = root / FOLDER / f"{stage}.json"
    if not path.is_file():
        return None
    job = Job(**json.loads(path.read_text()))
    if job.job_id is None and (found := find(job.name)):
        job = replace(job, job_id=found)
        save(root, job)
    return job


def load_all(root: Path) -> list[Job]:
    """Return the records of a run, in the order of its stages."""
    stages = sorted(path.stem for path in (root / FOLDER).glob("[0-9]*.json"))
    return [job for stage in stages if (job := load(root, stage))]


def save(root: Path, job: Job) -> None:
    """Write a record whole."""
    write_whole(folder_of(root) / f"{job.stage}.json", json.dumps(asdict(job), indent=1).encode())


def forget(root: Path, stage: str) -> None:
    """Remove the record of a submission that SLURM refused."""
    (root / FOLDER / f"{stage}.json").unlink(missing_ok=True)


def live(root: Path, stage: str) -> Job | None:
    """Return a stage's job if it is queued or running."""
    job = load(root, stage)
    return job if job and job.job_id and states([job.job_id])[job.job_id].is_live else None


def require(job: Job, identity: Identity) -> None:
    """Check that a job that is queued or running makes this artifact.

    Raises Unusable, naming what differs.
    """
    if job.key != identity.key:
        differs = identity.difference(job.settings, job.inputs)
        raise Unusable(
            f"job {job.job_id} of {job.user} makes it with {differs}: "
            f"scancel {job.job_id} first, or choose another run="
        )


def find(name: str) -> str | None:
    """Return the number of the job of this name, if SLURM has one."""
    lines = ask("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A").split()
    return lines[0] if lines else None


def states(ids: Iterable[str]) -> dict[str, State]:
    """Return what SLURM says of jobs: squeue of those of late, sacct of older ones, where it is kept."""
    wanted = list(ids)
    found = dict.fromkeys(wanted, State(UNKNOWN))
    if not wanted:
        return found
    listing = ask("squeue", "--noheader", "--states=all", f"--jobs={','.join(wanted)}", "--format=%A|%F|%T|%r|%L|%N")
    elements: dict[str, list[State]] = {}
    for line in listing.splitlines():
        number, array, word, reason, left, nodes = line.strip().split("|")
        elements.setdefault(array if array in found else number, []).append(State(word, reason, left, nodes))
    found |= {number: _together(those) for number, those in elements.items() if number in found}
    for number in [number for number in wanted if number not in elements]:
        try:
            words = ask("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={number}", "--format=State")
        except Unusable:  # no accounting here
            break
        if words.split():
            found[number] = _together([State(word.split()[0]) for word in words.splitlines() if word.strip()])
    return found


def _together(elements: Sequence[State]) -> State:
    """Return the state of an array: that of a live task if there is one, else of one that failed."""
    by_rank = sorted(elements, key=lambda one: (one.word != "RUNNING", not one.is_live, one.word == "COMPLETED"))
    return by_rank[0]


def ask(*command: str) -> str:
    """Return what one of SLURM's commands prints.

    Raises Unusable with SLURM's own words if it fails; a job that it no longer knows is no failure.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise Unusable(
            f"{command[0]} is not on this machine: submit where SLURM is, or use +cluster=local2 or torchrun"
        ) from None
    except subprocess.TimeoutExpired:
        raise Unusable(f"SLURM does not answer: {shlex.join(command)} took over a minute") from None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise Unusable(f"SLURM: {own_words(answer.stderr)}")
    return answer.stdout


def own_words(said: str) -> str:
    """Return SLURM's complaint in one line, without the names of its programs."""
    lines = [line.split("error:", 1)[-1].strip() for line in said.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or "no reason given"
