"""How time and memory of sharding, plan and loader grow with the corpus: 10^4, 10^5, 10^6 samples.

    python -m benchmarks.growth

The samples are text alone, so that a million of them fit on a disk; every figure is of a fresh process. A slope is that
of the line through the logarithms of the smallest and the largest: 1 is linear, 0 is flat.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.corpus import small_chat
from benchmarks.table import OURS, Row, show

SIZES = (10_000, 100_000, 1_000_000)
STAGES = ("stage 02", "plan", "loader")
LINEAR, FLAT = 1.1, 0.1  # goals for the slopes; a fixed start hides growth, so that slopes come out below 1


def main() -> None:
    """Measure; print the tables and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--child", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        stage, folder = chosen.child
        print(json.dumps(work(stage, Path(folder))))
        return
    rows = measure(chosen.sizes)
    show(rows)
    print(json.dumps([row.as_json() for row in rows]))


def measure(sizes: list[int]) -> list[Row]:
    """Return the slopes of time and memory of each stage, with the figures of every size as a note."""
    found: dict[str, list[dict[str, float]]] = {stage: [] for stage in STAGES}
    for size in sizes:
        with tempfile.TemporaryDirectory() as place:
            make(Path(place), size)
            for stage in STAGES:
                command = [sys.executable, "-m", "benchmarks.growth", "--child", stage, place]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[stage].append(json.loads(done.splitlines()[-1]))
                print(f"  {stage} of {size:,} samples: {found[stage][-1]}", flush=True)
    rows = []
    for stage, figures in found.items():
        for figure, unit, goal in (("seconds", "s", LINEAR), ("megabytes", "MB", FLAT)):
            row = Row(f"growth of {stage}: {figure}", "slope", goal, True, goal_is_figure=True)
            values = [one[figure] for one in figures]
            row.figures[OURS] = [slope(sizes, values)]
            row.notes[OURS] = ", ".join(
                f"{value:,.2f} {unit} at {size:,}" for size, value in zip(sizes, values, strict=True)
            )
            rows.append(row)
    return rows


def slope(sizes: list[int], values: list[float]) -> float:
    """Return the slope of the line through the logarithms of the first and the last value."""
    return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])


def make(folder: Path, size: int) -> None:
    """Write a JSON list of conversations without pictures."""
    with (folder / "list.json").open("w") as out:
        for number in range(size):
            said = [
                {"from": "human", "value": f"What comes after {number}?"},
                {"from": "gpt", "value": f"After it comes {number + 1}{' word' * (number % 17)}."},
            ]
            out.write(("[" if number == 0 else ",") + json.dumps({"id": f"{number:07d}", "conversations": said}))
        out.write("]")


def work(stage: str, folder: Path) -> dict[str, float]:
    """Do a stage's work; return its seconds and the highest memory of its largest process, MB."""
    from vlm.config import DataConfig, Form, Geometry, ShardRuntime, SourceConfig, SplitConfig
    from vlm.data.checks import Checks
    from vlm.data.index import Split
    from vlm.data.loader import Steps, load_steps
    from vlm.data.pixels import Preprocessing
    from vlm.data.plan import make_plan
    from vlm.data.shards import write_split
    from vlm.data.sources import read

    chat, out = small_chat(), folder / "split"
    start = time.perf_counter()
    if stage == "stage 02":
        shutil.rmtree(out, ignore_errors=True)
        source = SourceConfig(path=str(folder / "list.json"))
        data = DataConfig(finetune=SplitConfig(sources=[source]), preview=0, runtime=ShardRuntime(workers=2))
        checks = Checks(chat, Form.chat, data.max_tokens, data.max_pixels)
        write_split(out, read(source), [source.label], checks, data)
    else:
        split = Split(out)
        limits = {"pack_tokens": 2048, "pack_images": 64, "packing": True}
        plan = make_plan(split.rows, 0, epochs=1, steps=None, samples_per_step=128, **limits)
        if stage == "loader":
            how = Preprocessing(336, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), Geometry.crop)
            steps = Steps(split, plan, chat, how, rank=0, ranks=1, rows_at_once=4)
            next(load_steps(steps, plan.steps // 2, 2))
    seconds = time.perf_counter() - start
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "megabytes": max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1000}


if __name__ == "__main__":
    main()
