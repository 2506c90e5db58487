"""Everything side by side with the peers, in one run: one table last, results.json and results.png.

    python benchmarks/run.py                        all rows, at most 40 minutes on two cores that do nothing else
    python benchmarks/run.py captions resume        some of them
    python benchmarks/run.py --list                 what there is
    python benchmarks/run.py --try                  everything at toy sizes, to see that it works; the figures mean nothing
    python benchmarks/run.py --gpu                  the part that needs a GPU, at true shapes, at most 8 minutes

Peers get environments of their own on first use, which takes ten minutes more; one that cannot be installed or fails is
named with the reason. Nothing is asserted. `quality` needs two hours of its own: see benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.table import OURS, Row, show, summary
from benchmarks.timing import load

LIMIT = 40.0  # minutes of a whole run
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int = 3
    shape: str = "scaled"
    samples: int = 14_000  # of the loaders' corpus
    position: int = 400  # batches before a resume
    listed: int = 1_000_000  # samples of a start-up
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)  # of growth
    pictures: int = 1000  # of a corpus to shard
    seconds: float = 2.0  # of a turn of pixels


TOY = Size(1, "tiny", 1200, 10, 3000, (300, 3000), 200, 0.3)


def training(case: str, size: Size) -> list[Row]:
    """Steps of a case beside Trainer, TRL, LLaMA-Factory and ms-swift."""
    from benchmarks.training import measure

    return measure(case, size.rounds, size.shape)


def data(size: Size) -> list[Row]:
    """Seven loaders: start-up, rate, memory, reads, resume, exactness."""
    from benchmarks.data import measure

    return measure(size.rounds, size.samples, size.position, size.listed)


def pixels(size: Size) -> list[Row]:
    """Pictures beside transformers' processors."""
    from benchmarks.pixels import measure

    return measure(size.rounds, size.seconds)


def sharding(size: Size) -> list[Row]:
    """Stage 02 beside webdataset's writer, mosaicml-streaming's and img2dataset."""
    told = last_line(
        "benchmarks.shard", "--rounds", size.rounds, "--coco", size.pictures // 4, "--cc3m", size.pictures, "--peers"
    )
    found, rows = told["CC3M-like"]["pictures_per_second"], []
    both = {"checked in full": "stage 02, 2 processes", "nothing checked": "stage 02 without checks, 1 process"}
    for name, ours in both.items():
        peers = {peer: rates for peer, rates in found.items() if not peer.startswith(("stage 02", "decode"))}
        rows.append(Row(f"sharding, {name}", "pictures/s", figures={OURS: found[ours]} | peers))
        rows[-1].missing |= told["missing"]
    return rows


def checkpoint(size: Size) -> list[Row]:
    """A checkpoint of stage 03 beside Trainer's with DeepSpeed."""
    found = last_line("benchmarks.checkpoint")
    rows = [Row(f"checkpoint of step 03, {unit}", unit, less_is_better=True) for unit in ("bytes", "seconds")]
    for row in rows:
        row.figures = {OURS: [found["ours"][row.unit]], "Trainer with DeepSpeed": [found["trainer"][row.unit]]}
    return rows


def evaluation(size: Size) -> list[Row]:
    """Stage 05 beside answers one at a time."""
    found = last_line("benchmarks.eval", "pope", "ok_vqa", "--shape", size.shape, "--rounds", size.rounds)
    rows = []
    for case in [name for name, one in found.items() if isinstance(one, dict)]:
        rates = next(one for one in found[case].values() if isinstance(one, dict) and "stage 05" in one)
        row = Row(f"evaluation, {case}", "questions/s", 4.0)
        row.figures = {OURS: rates["stage 05"], "one at a time, as LLaVA": rates["LLaVA's way"]}
        rows.append(row)
    return rows


def growth(size: Size) -> list[Row]:
    """Slopes of time and memory."""
    from benchmarks.growth import measure

    return measure(list(size.sizes))


def quality(size: Size) -> list[Row]:
    """Accuracy of the demo after the same number of samples; what is there is not trained again."""
    found = last_line("benchmarks.quality")
    row = Row("demo accuracy after as many samples", "% right", missing=found["missing"])
    for name, figures in found.items():
        if isinstance(figures, dict) and "score" in figures:
            contestant = {"stages 03 and 04": OURS, "stage 04 alone": f"{OURS}, stage 04 alone"}.get(name, name)
            row.figures[contestant] = [figures["score"]]
            row.notes[contestant] = f"{figures['samples']:,} samples in {figures['seconds']:.0f} s"
    return [row]


ROWS: dict[str, tuple[float, Callable[[Size], list[Row]]]] = {  # minutes, about
    "captions": (4, lambda size: training("captions", size)),
    "full": (4, lambda size: training("full", size)),
    "mixed": (6, lambda size: training("mixed", size)),
    "lora": (4, lambda size: training("lora", size)),
    "data": (11, data),
    "evaluation": (4, evaluation),
    "growth": (4, growth),
    "pixels": (2, pixels),
    "sharding": (2, sharding),
    "checkpoint": (1, checkpoint),
    "quality": (120, quality),
}
BY_DEFAULT = [name for name in ROWS if name != "quality"]


def last_line(module: str, *given: object) -> dict:
    """Run a benchmark of its own and return the JSON that it prints last."""
    command = [sys.executable, "-m", module, *map(str, given)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} failed; its reason stands above")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure what is asked for; print the table, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ROWS)}; none: all but quality")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=LIMIT, help="no row begins that would end later")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/benchmarks")
    parser.add_argument("--try", dest="toy", action="store_true", help="toy sizes, one round")
    parser.add_argument("--list", action="store_true", help="name the rows and their minutes")
    parser.add_argument(
        "--gpu", action="store_true", help="true shapes on a GPU; see benchmarks/gpu.py for its options"
    )
    if "--gpu" in sys.argv:
        rest = [given for given in sys.argv[1:] if given != "--gpu"]
        raise SystemExit(subprocess.run([sys.executable, "-m", "benchmarks.gpu", *rest], cwd=ROOT).returncode)
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(ROWS):
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose of {', '.join(ROWS)}")
    if chosen.list:
        for name, (minutes, _) in ROWS.items():
            print(f"{name:12} about {minutes:g} minutes")
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    size = TOY if chosen.toy else Size(chosen.rounds)
    report(measure(chosen.names or BY_DEFAULT, size, chosen.minutes), chosen.out)


def measure(names: list[str], size: Size, minutes: float) -> tuple[list[Row], dict[str, object]]:
    """Measure rows one after the other until the time is up; return them, and what stands beside them."""
    began, rows, left_out, before = time.monotonic(), [], {}, load()
    for number, name in enumerate(names, 1):
        needs, work = ROWS[name]
        spent = (time.monotonic() - began) / 60
        if name != names[0] and size is not TOY and spent + needs > minutes:
            left_out[name] = f"{spent:.0f} of {minutes:g} minutes were spent, and it needs about {needs:g}"
            continue
        print(f"\n[{number}/{len(names)}] {name}: {spent:.1f} of {minutes:g} minutes spent", flush=True)
        try:
            found = work(size)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as problem:
            left_out[name] = str(problem).splitlines()[0]
            continue
        show(found)
        rows += found
    beside = {"cpus": os.cpu_count(), "load_before": before, "load_after": load(), "left_out": left_out}
    return rows, beside | {"minutes": (time.monotonic() - began) / 60}


def report(measured: tuple[list[Row], dict[str, object]], out: Path) -> None:
    """Write results.json and results.png, and print the table."""
    from benchmarks.chart import draw

    rows, beside = measured
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps({**beside, "rows": [row.as_json() for row in rows]}, indent=1))
    draw(out / "results.png", rows)
    print("\n" + summary(rows))
    for name, reason in beside["left_out"].items():
        print(f"not measured: {name}: {reason}")
    print(
        f"{beside['minutes']:.1f} minutes; load average {beside['load_before']} before, {beside['load_after']} after, "
        f"{beside['cpus']} processors; {out}/results.json, {out}/results.png"
    )


if __name__ == "__main__":
    main()
