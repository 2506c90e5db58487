"""Loaders side by side: start-up, rate, memory, raw reads, resume, and whether a resume is exact.

    python -m benchmarks.data                     about ten minutes
    python -m benchmarks.data --samples 1500 --position 40 --listed 20000 --rounds 1      to try it

All read the same samples, each in a fresh process for every figure, in turns. See benchmarks/peers/loaders.py.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import loader_start
from benchmarks.corpus import CC3M, make_corpus, small_chat
from benchmarks.environments import Missing, python_of
from benchmarks.peers.loaders import BATCH, COMPARED, NOT_READ
from benchmarks.table import OURS, Row, show
from benchmarks.turns import Failed
from vlm.config import DataConfig, Form, ShardRuntime, SourceConfig, SplitConfig
from vlm.data.checks import Checks
from vlm.data.shards import write_split
from vlm.data.sources import read

PICTURES = 64  # different ones; the samples share them
WORKERS = 2
BATCHES, READS = 25, 4000  # that a turn takes
SHARDS = 20
NEEDS = {"mosaicml-streaming": "streaming", "litdata": "litdata", "Energon": "energon"}  # an environment
SEQUENTIAL, SHUFFLED, LOOSE = "webdataset, sequential", "webdataset, shuffled", "torch Dataset, loose files"
NAMES = (OURS, SEQUENTIAL, SHUFFLED, LOOSE, *NEEDS)
LIST = "JSON list in every worker, as LLaVA"


def main() -> None:
    """Measure; print the tables and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=14_000)
    parser.add_argument("--position", type=int, default=400, help="batches before the resume")
    parser.add_argument("--listed", type=int, default=1_000_000, help="samples of the start-up")
    chosen = parser.parse_args()
    rows = measure(chosen.rounds, chosen.samples, chosen.position, chosen.listed)
    show(rows)
    print(json.dumps([row.as_json() for row in rows]))


def measure(rounds: int, samples: int = 14_000, position: int = 400, listed: int = 1_000_000) -> list[Row]:
    """Return all rows of the loaders."""
    if samples < (position + COMPARED) * BATCH:
        raise SystemExit(f"{samples} samples are less than the {position + COMPARED} batches of {BATCH} that are read")
    with tempfile.TemporaryDirectory() as folder:
        start = start_up(rounds, listed, Path(folder))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, samples)
        gone: dict[str, str] = {}
        for name in NEEDS:
            take_part(gone, name, lambda name=name: child(name, do="convert", folder=str(folder)))
        return [
            *start,
            *rates(rounds, folder, gone),
            *resumes(rounds, folder, position, gone),
        ]


def make(folder: Path, samples: int) -> None:
    """Write the corpus as loose files with a list, and as our split, whose tars are ordinary ones."""
    listed = make_corpus(folder / "corpus", CC3M, PICTURES, seed=0)
    some = json.loads(listed.read_text())
    (folder / "loose").mkdir()
    records = []
    for number in range(samples):
        one = some[number % PICTURES]
        os.link(folder / "corpus/images" / one["image"], folder / "loose" / f"{number:06d}.jpg")
        records.append({**one, "id": f"{number:06d}", "image": f"{number:06d}.jpg"})
    (folder / "chat.json").write_text(json.dumps(records))
    source = SourceConfig(path=str(folder / "chat.json"), images=str(folder / "loose"))
    data = DataConfig(
        finetune=SplitConfig(sources=[source]),
        samples_per_shard=-(-samples // SHARDS),
        preview=0,
        runtime=ShardRuntime(workers=2),
    )
    checks = Checks(small_chat(), Form.chat, data.max_tokens, data.max_pixels)
    write_split(folder / "split", read(source), [source.label], checks, data)


def child(name: str, **asked: object) -> dict[str, Any]:
    """Return what a loader in a process of its own says. Raises: Failed, Missing."""
    python = python_of(NEEDS[name]) if name in NEEDS else sys.executable
    root = str(Path(__file__).parents[1])
    command = [python, "-m", "benchmarks.peers.loaders", name, json.dumps(asked)]
    environment = os.environ | {"PYTHONPATH": root, "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=240)
    except subprocess.TimeoutExpired:
        raise Failed("it did not end within four minutes") from None
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        raise Failed((told or ["it wrote nothing"])[-1].strip()[:200])
    return json.loads(done.stdout.splitlines()[-1])


def take_part(gone: dict[str, str], name: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return what the work gives; None, and the reason in `gone`, if the loader cannot do it."""
    if name in gone:
        return None
    try:
        return work()
    except (Failed, Missing) as reason:
        gone[name] = str(reason)
        print(f"  {name} takes no part: {reason}", flush=True)
        return None


def start_up(rounds: int, samples: int, folder: Path) -> list[Row]:
    """Time and memory from nothing to the first sample over an index of a million, late in the epoch."""
    loader_start.make(folder, samples, 900)
    seconds = Row(f"loader start at {samples:,} samples", "s", 50, True, against=LIST)
    memory = Row(f"memory of a rank at {samples:,} samples", "MB", 0.1, True, goal_is_share=True, against=LIST)
    for number in range(rounds):
        for name, kind in ((OURS, "first sample"), (LIST, loader_start.LIST)):
            command = [sys.executable, "-m", "benchmarks.loader_start", "--child", kind, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(done.splitlines()[-1])
            seconds.figures.setdefault(name, []).append(found["seconds"])
            memory.figures.setdefault(name, []).append(found["megabytes_in_all"])
            print(f"  round {number + 1}: {name} {found['seconds']} s", flush=True)
    return [seconds, memory]


def rates(rounds: int, folder: Path, gone: dict[str, str]) -> list[Row]:
    """First batch, rate, memory and raw reads of a fresh loader with two workers; ours tokenizes and packs as well."""
    left = dict(gone)
    rows = {
        "first": Row("first batch of a fresh loader", "s", None, True, missing=left),
        "rate": Row("loader with 2 workers", "samples/s", missing=left),
        "megabytes": Row("its memory, workers included", "MB", None, True, goal_is_share=True, missing=left),
        "reads": Row(
            "random reads, ours checked and parsed, webdataset's in order", "samples/s", 8, against=SEQUENTIAL
        ),
        "bytes": Row("random reads of the bytes alone, webdataset's in order", "samples/s", 8, against=SEQUENTIAL),
    }
    asked = {"do": "rate", "folder": str(folder), "workers": WORKERS, "batches": BATCHES}
    alone = {"do": "reads", "folder": str(folder), "count": READS}  # not beside workers that still read ahead
    for number in range(rounds):
        for name in NAMES:
            found = take_part(left, name, functools.partial(child, name, **asked))
            if found and name not in NOT_READ:
                found |= take_part(left, name, functools.partial(child, name, **alone)) or {}
            for figure, row in rows.items() if found else ():
                if figure in found:
                    row.figures.setdefault(name, []).append(found[figure])
            print(f"  round {number + 1}: {name} {found and round(found['rate'])} samples/s", flush=True)
    rows["reads"].missing = rows["bytes"].missing = left | NOT_READ
    return list(rows.values())


def resumes(rounds: int, folder: Path, position: int, gone: dict[str, str]) -> list[Row]:
    """Time from a saved position to the first batch, and how many of the next batches are those of an unbroken run."""
    left = dict(gone)
    seconds = Row(f"resume at batch {position} to the first batch", "s", 30, True, against=SEQUENTIAL, missing=left)
    exact = {
        workers: Row(
            f"exact after resume, {WORKERS} workers before, {workers} after",
            f"batches of {COMPARED}",
            COMPARED,
            goal_is_figure=True,
        )
        for workers in (WORKERS, 1)
    }
    for row in exact.values():
        row.missing = dict(left)
    states = {name: folder / f"state-{number}" for number, name in enumerate(NAMES)}
    went_on: dict[str, list] = {}
    for name in NAMES:
        asked = {"do": "position", "folder": str(folder), "workers": WORKERS, "batches": position}
        if found := take_part(left, name, functools.partial(child, name, **asked, state=str(states[name]))):
            went_on[name] = found["next"]
            seconds.notes[name] = f"state of {found['bytes']:,} bytes"
    for number in range(rounds):
        for name in went_on:
            for workers, row in exact.items():
                if workers != WORKERS and number:
                    continue  # it comes out the same each time
                asked = {"do": "resume", "folder": str(folder), "workers": workers, "state": str(states[name])}
                found = take_part(row.missing, name, functools.partial(child, name, **asked))
                if found is None:
                    row.figures[name] = [0.0]
                    row.notes[name] = row.missing.pop(name)
                    continue
                if workers == WORKERS:
                    seconds.figures.setdefault(name, []).append(found["seconds"])
                same = sum(a == b for a, b in zip(found["next"], went_on[name], strict=False))
                row.figures[name] = [same]
                row.notes[name] = told(found["next"], went_on[name])
            print(f"  round {number + 1}: {name} {seconds.figures.get(name, ['-'])[-1]} s", flush=True)
    return [seconds, *exact.values()]


def told(found: list[list[str]], expected: list[list[str]]) -> str:
    """Return how many samples are not those that were due."""
    wrong = len(set(sum(found, [])) - set(sum(expected, [])))
    return f"{wrong} of {len(sum(expected, []))} samples are others" if wrong else ""


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
