"""What became of a run's jobs, as a table; and the table again and again until they have ended.

python -m vlm.pipeline.follow run=demo [runs=runs] [wait=true]     (launch/status.sh)
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.errors import Unusable
from vlm.pipeline import artifact, jobs
from vlm.pipeline.jobs import Job, State
from vlm.pipeline.requeue import read_legs

EVERY = 5  # seconds between two looks; each asks SLURM once
HEAD = ("stage", "job", "state", "step", "loss", "left", "after", "resources", "log")


def follow(root: Path, *, wait: bool) -> bool:
    """Print the table of a run's jobs, with `wait` until all have ended; say whether every stage is whole.

    Raises Unusable if nothing was submitted, or SLURM does not answer.
    """
    drawn, before = 0, None
    while True:
        found = jobs.load_all(root)
        if not found:
            raise Unusable(f"{root} has no jobs: submit some with +cluster=NAME")
        states = states_of(root, found)
        text = "\n".join([table(root, found, states), *reasons(root, found, states)])
        live = any(state.is_live for state in states.values())
        in_place = wait and sys.stdout.isatty()
        if not in_place:  # a log gets the table when a state changes, not with each step
            if states_only(states) != before:
                print(text, flush=True)
        else:
            print(f"\033[{drawn}F\033[J" * bool(drawn) + text, flush=True)
            drawn = text.count("\n") + 1
        before = states_only(states)
        if not live or not wait:
            return all(is_whole(root, job) for job in found)
        time.sleep(EVERY)


def states_only(states: Mapping[str, State]) -> list[str]:
    """Return what must change for the table to be shown again in a log."""
    return [state.word for state in states.values()]


def states_of(root: Path, found: Sequence[Job]) -> dict[str, State]:
    """Return the state of each stage; that of the array that shares it until this has ended."""
    ids = [number for job in found if not is_whole(root, job) for number in (job.shares, job.job_id) if number]
    known = jobs.states(ids)
    states = {}
    for job in found:
        own, shares = known.get(job.job_id or "", State(jobs.UNKNOWN)), known.get(job.shares or "")
        if is_whole(root, job):
            states[job.stage] = State("COMPLETED")
        else:
            states[job.stage] = shares if shares and shares.word != "COMPLETED" and own.word == "PENDING" else own
    return states


def is_whole(root: Path, job: Job) -> bool:
    """Say whether the artifact that a job was to make is there."""
    path = root / job.stage
    return (path / artifact.RECORD).is_file() and artifact.load(path).key == job.key


def table(root: Path, found: Sequence[Job], states: Mapping[str, State]) -> str:
    """Return the jobs of a run as lines of text."""
    rows = [HEAD, *(_row(root, job, states[job.stage]) for job in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join([f"{root} at {time.strftime('%H:%M:%S')}", *lines])


def _row(root: Path, job: Job, state: State) -> tuple[str, ...]:
    step, loss, left = progress(root, job.stage)
    number = f"{job.job_id or '?'}" + (f" ({job.shares})" if job.shares else "")
    waiting = f" ({state.reason})" if state.word == "PENDING" and state.reason not in ("", "None") else ""
    left = left if state.word == "RUNNING" else ""
    log = Path(jobs.FOLDER) / job.stage / f"{job.job_id}_0_log.out"
    after = ", ".join(job.waits_for)
    return (job.stage, number, state.word + waiting, step, loss, left, after, job.resources, str(log))


def progress(root: Path, stage: str) -> tuple[str, str, str]:
    """Return step, loss and time left of a training as it last said; empty where it has said nothing."""
    folder = next((one for one in (root / stage, root / f"{stage}.partial") if one.is_dir()), None)
    if folder is None or not (folder / "metrics.jsonl").is_file():
        return "", "", ""
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    rows = [row for row in map(json.loads, lines) if "seconds_per_step" in row]
    if not rows:
        return "", "", ""
    last, steps = rows[-1], _steps_of(folder)
    loss = "" if last.get("loss") is None else f"{last['loss']:.4f}"
    if steps is None:
        return str(last["step"]), loss, ""
    seconds = round(last["seconds_per_step"] * (steps - last["step"]))
    return f"{last['step']}/{steps}", loss, f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _steps_of(folder: Path) -> int | None:
    """Return how many steps a training will have, as its newest checkpoint says."""
    records = sorted(folder.glob("checkpoints/step_*[0-9]/progress.json"))
    try:
        return json.loads(records[-1].read_text())["steps"] if records else None
    except (OSError, ValueError):  # removed or replaced this moment
        return None


def reasons(root: Path, found: Sequence[Job], states: Mapping[str, State]) -> list[str]:
    """Return a line for each stage that ended without its artifact: why, and what to do."""
    lines = []
    for job in found:
        state = states[job.stage]
        if state.is_live or state.word == "COMPLETED" and is_whole(root, job):
            continue
        broken = [name for name in job.waits_for if name in states and not states[name].is_live]
        broken = [name for name in broken if not is_whole(root, next(one for one in found if one.stage == name))]
        if broken:
            lines.append(f"{job.stage}: cancelled, since {' and '.join(broken)} did not come to its end")
            continue
        folder = root / jobs.FOLDER / job.stage
        lines.append(f"{job.stage}: {state.word}: {_last_words(folder, job)}; submitting again goes on from there")
    return lines


def _last_words(folder: Path, job: Job) -> str:
    """Return why a job ended, from the legs that its batch script recorded."""
    logs = sorted(folder.glob("*_log.out"))
    legs = [leg for path in sorted(folder.glob("*_legs.jsonl")) for leg in read_legs(path) if leg.status]
    if not logs:
        return f"it left no log: can the nodes write {folder.absolute()}?"
    said = legs[-1].why if legs else "ended from outside"
    return f"{said} ({folder / f'{job.job_id}_0_log.out'})"


def how_to(root: Path) -> str:
    """Say how to look at jobs later, and how to end them."""
    ids = [number for job in jobs.load_all(root) if not is_whole(root, job) for number in (job.shares, job.job_id)]
    status = f"launch/status.sh run={root.name}" + ("" if root.parent == Path("runs") else f" runs={root.parent}")
    return f"follow them: {status} wait=true    cancel them: scancel {' '.join(filter(None, ids))}"


def show(root: Path, *, wait: bool) -> int:
    """Print the table and, with `wait`, follow it; return the exit status. Ctrl-C leaves the jobs as they are."""
    try:
        whole = follow(root, wait=wait)
    except KeyboardInterrupt:
        print(f"\nthe jobs go on; {how_to(root)}")
        return 130
    return 0 if whole or not wait else 1


def main() -> None:
    """Read run=, runs= and wait= and show the table."""
    known: dict[str, Any] = {"run": "demo", "runs": "runs", "wait": "false"}
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name not in known or not value:
            sys.exit(f"status: {argument} is not one of run=NAME, runs=FOLDER, wait=true")
        known[name] = value
    try:
        sys.exit(show(Path(known["runs"]) / known["run"], wait=known["wait"] == "true"))
    except Unusable as problem:
        sys.exit(f"status: {problem}")


if __name__ == "__main__":
    main()
