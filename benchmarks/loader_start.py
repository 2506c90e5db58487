"""How soon the loader gives its first sample, or batch, late in a run over a million, and the memory that takes.

Beside it, what loaders do that keep the corpus as a JSON list: every worker process parses the list. It has read no sample then.

    python -m benchmarks.loader_start
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.corpus import CC3M, make_corpus, record, small_chat
from benchmarks.timing import in_turns, load, spread
from vlm.config import DataConfig, Form, Geometry, ShardRuntime, SourceConfig, SplitConfig
from vlm.data.checks import Checks
from vlm.data.index import INDEX, Split
from vlm.data.loader import Steps, load_steps
from vlm.data.pixels import Preprocessing
from vlm.data.plan import make_plan
from vlm.data.shards import write_split
from vlm.data.sources import read

REAL = 64  # samples that are written; the rows of the index repeat them
DRAWN = 1000  # records that are drawn; the list repeats them, each time with an id of its own
WORKERS = 2
SAMPLES_PER_STEP = {"first sample": 1, "first batch": 32}  # that are waited for
LIST = "list"
STEPS_LEFT = 100  # when the loader starts: it begins late in the epoch


def main() -> None:
    """Make the index and the list, measure both in fresh processes in turns, print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--record-bytes", type=int, default=900, help="of one record of the JSON list")
    parser.add_argument("--child", choices=(*SAMPLES_PER_STEP, LIST), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        waits_for = SAMPLES_PER_STEP.get(chosen.child)
        print(json.dumps(start_index(chosen.folder, waits_for) if waits_for else start_list(chosen.folder)))
        return
    before = load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, chosen.samples, chosen.record_bytes)
        size = (folder / "list.json").stat().st_size
        print(f"{chosen.samples:,} samples, a list of {size / 1e9:.2f} GB, {WORKERS} workers")
        measured: dict[str, list[dict]] = {kind: [] for kind in (*SAMPLES_PER_STEP, LIST)}

        def run(kind: str) -> float:
            command = [sys.executable, "-m", "benchmarks.loader_start", "--child", kind, "--folder", str(folder)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured[kind].append(json.loads(out.splitlines()[-1]))
            return measured[kind][-1]["seconds"]

        in_turns({kind: partial(run, kind) for kind in measured}, chosen.rounds)
    report(measured, {"load_before": before, "load_after": load(), "cpus": os.cpu_count()})


def report(measured: dict[str, list[dict]], found: dict) -> None:
    """Print seconds and megabytes of all, and how many times less the index takes than the list."""
    for figure in ("seconds", "megabytes", "megabytes_in_all"):
        rows = {kind: [one[figure] for one in runs] for kind, runs in measured.items()}
        middle = {kind: statistics.median(values) for kind, values in rows.items()}
        ratios = {kind: round(middle[LIST] / middle[kind], 1) for kind in SAMPLES_PER_STEP}
        found[figure] = {**rows, "ratio": ratios}
        for kind, values in rows.items():
            ratio = f"{ratios[kind]:,} x" if kind in ratios else ""
            print(f"  {figure:18}{kind:14}{spread(values):>34}{ratio:>10}")
    print(f"load average {found['load_before']} before, {found['load_after']} after, {found['cpus']} processors")
    print(json.dumps(found))


def make(folder: Path, samples: int, record_bytes: int) -> None:
    """Write a split whose index has `samples` rows, and a JSON list of as many records."""
    listed = make_corpus(folder / "corpus", CC3M, REAL, seed=0)
    source = SourceConfig(path=str(listed), images=str(folder / "corpus/images"))
    data = DataConfig(finetune=SplitConfig(sources=[source]), runtime=ShardRuntime(workers=1))
    checks = Checks(small_chat(), Form.chat, data.max_tokens, data.max_pixels)
    write_split(folder / "split", read(source), [source.label], checks, data)
    rows = np.load(folder / "split" / INDEX)
    np.save(folder / "split" / INDEX, np.resize(rows, samples))
    rng = np.random.default_rng(0)
    drawn = [record(number % REAL, rng) for number in range(DRAWN)]
    for one in drawn:
        one["conversations"][1]["value"] += " word" * (max(record_bytes - len(json.dumps(one)), 0) // 5)
    with (folder / "list.json").open("w") as out:
        for number in range(samples):
            one = drawn[number % DRAWN] | {"id": f"{number:06d}"}
            out.write(("[" if number == 0 else ",") + json.dumps(one))
        out.write("]")


def start_index(folder: Path, waits_for: int) -> dict[str, float]:
    """Open the split, plan the epoch, and wait for so many samples, a late step."""
    chat = small_chat()
    how = Preprocessing(336, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), Geometry.crop)
    idle, start = memory([]), time.perf_counter()
    split = Split(folder / "split")
    limits = {"pack_tokens": 8192, "pack_images": 64, "packing": True}
    plan = make_plan(split.rows, 0, epochs=1, steps=None, samples_per_step=waits_for, **limits)
    steps = Steps(split, plan, chat, how, rank=0, ranks=1, rows_at_once=4)
    batches = load_steps(steps, max(plan.steps - STEPS_LEFT, 0), WORKERS)
    next(batches)
    seconds = time.perf_counter() - start
    return figures(seconds, idle, memory([child.pid for child in multiprocessing.active_children()]))


def start_list(folder: Path) -> dict[str, float]:
    """Let every worker parse the list."""
    idle, start = memory([]), time.perf_counter()
    context = multiprocessing.get_context("fork")
    ready, done = context.Queue(), context.Event()
    workers = [context.Process(target=_parse, args=(folder / "list.json", ready, done)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.get()
    seconds = time.perf_counter() - start
    found = figures(seconds, idle, memory([worker.pid for worker in workers]))
    done.set()
    return found


def _parse(path: Path, ready: multiprocessing.Queue, done: multiprocessing.Event) -> None:
    with path.open() as handle:
        records = json.load(handle)
    ready.put(len(records))
    done.wait()


def figures(seconds: float, idle: float, after: float) -> dict[str, float]:
    """Return what one start took: seconds, megabytes more than before it, and megabytes of all its processes."""
    return {"seconds": round(seconds, 3), "megabytes": round(after - idle, 1), "megabytes_in_all": round(after, 1)}


def memory(others: list[int]) -> float:
    """Return the proportional share (PSS) of this process and others, megabytes; pages they share count once."""
    total = 0
    for process in (os.getpid(), *others):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


if __name__ == "__main__":
    main()
