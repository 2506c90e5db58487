"""One line of benchmarks/gpu.py in a process of its own: a model and its corpora, or one training on them.

    python -m benchmarks.gpu_line make captions,lora FOLDER SHAPE SAMPLES
    python -m benchmarks.gpu_line train "04 LoRA" FOLDER SHAPE SAMPLES

Reads a line from its input, its turn, before it begins; without one it ends.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import deepspeed  # noqa: F401 - takes long to import, as transformers does: not while the line has its turn
import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks import scaled
from benchmarks.gpu import LINES, Line
from benchmarks.train_step import CASES, MIB, memory, settings, useful_work
from vlm.config import Form, ModelConfig, Recompute, TrainConfig
from vlm.train import loop, run
from vlm.train.checkpoint import Checkpoints
from vlm.train.engine import join_ranks
from vlm.train.preflight import estimate

if TYPE_CHECKING:
    from torch.profiler import profile

STEPS = 4  # the first is not timed; nor is the last where it is profiled
LARGEST = 5  # costs of a profile that are named


def main() -> None:
    """Do what is asked when it is this line's turn."""
    do, what, folder, shape, samples = sys.argv[1:]
    if not sys.stdin.readline():
        return  # who would have given it its turn is gone
    chosen = argparse.Namespace(shape=shape, samples=int(samples), steps=STEPS)
    if do == "make":
        make(chosen, Path(folder), what.split(","))
    else:
        print(json.dumps(work(chosen, LINES[what], Path(folder))))


def make(chosen: argparse.Namespace, folder: Path, cases: list[str]) -> None:
    """Write the random model and the corpora of the cases."""
    model = scaled.make_model(folder / "parts", scaled.SHAPES[chosen.shape])
    for name in cases:
        lengths = getattr(scaled, CASES[name].lengths)(chosen.samples * STEPS, np.random.default_rng(0))
        (folder / name).mkdir()
        scaled.make_shards(folder / name, model, lengths, Form(CASES[name].form))


def work(chosen: argparse.Namespace, line: Line, folder: Path) -> dict:
    """Train; return rate, memory, work of a sample and, if asked, the largest costs of a step."""
    chosen.our_rows = line.rows
    cfg = settings(chosen, CASES[line.case])
    changes = dict(line.changes)
    if "recompute" in changes:
        changes["recompute"] = Recompute(changes["recompute"])
    of_runtime = {key: value for key, value in changes.items() if hasattr(cfg.runtime, key)}
    rest = {key: value for key, value in changes.items() if key not in of_runtime}
    cfg = replace(cfg, runtime=replace(cfg.runtime, **of_runtime), **rest)
    base, split = folder / "parts/model", folder / line.case / "shards/finetune"
    out, start = Path(tempfile.mkdtemp(dir=folder)), memory("VmRSS")
    costs: list[str] = []
    on_gpu = torch.cuda.is_available()
    join_ranks()
    if line.who == "trainer":
        from benchmarks.trainer import ZERO_2
        from benchmarks.trainer import train as train_peer

        clock = train_peer(cfg, 0, base=base, split=split, out=out, rows=line.rows, deepspeed=ZERO_2, saves=False)
        seconds, losses, foreseen = clock.seconds, clock.losses, None
    else:
        seconds, losses, costs = train_ours(cfg, base, split, out, line.profiled)
        needed = estimate(cfg, 0, ModelConfig(), base=base, split=split, ranks=1, is_gpu=on_gpu).memory
        foreseen = sum(needed.values()) / MIB
    with torch.device("meta"):
        shell = LlavaForConditionalGeneration(LlavaForConditionalGeneration.config_class.from_pretrained(base))
    useful = useful_work(cfg, shell, base, split)
    weights = sum(weight.numel() for weight in shell.parameters())
    timed = seconds[1:-1] if line.profiled else seconds[1:]
    return {
        "rate": chosen.samples / statistics.median(timed),
        "peak_mib": (torch.cuda.max_memory_allocated() if on_gpu else memory("VmHWM") - start) / MIB,
        "foreseen_mib": foreseen,
        "losses": losses,
        "seconds": seconds,
        "naive_flops_per_sample": 6 * weights * useful["tokens_per_sample"],
        "costs": costs,
        **useful,
    }


def train_ours(
    cfg: TrainConfig, base: Path, split: Path, out: Path, profiled: bool
) -> tuple[list[float], list[float], list[str]]:
    """Train as the stages do, without saving; return seconds and losses of the steps, and the largest costs of the last."""
    Checkpoints.save = lambda *_: None
    run.write_probe = run._export = lambda *_: None  # after training: no part of what is timed
    costs: list[str] = []
    if profiled:
        steps, whole = [0], loop.take_step

        def take_step(*given: object) -> object:
            steps[0] += 1
            if steps[0] != STEPS:
                return whole(*given)
            with profiling() as seen:
                start = time.perf_counter()
                done = whole(*given)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                took = time.perf_counter() - start
            costs.extend(largest(seen, took))
            return done

        loop.take_step = take_step
    run.train(cfg, 0, base=base, split=split, out=out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds_per_step"] for row in rows], [row["loss"] for row in rows], costs


def profiling() -> "profile":
    """Return a profiler of the device that computes; on a GPU of its kernels alone, which costs the CPU least."""
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU])


def largest(seen: "profile", took: float) -> list[str]:
    """Return how busy the device was, and what took most of its time by itself."""
    from torch.autograd import DeviceType

    events, name = seen.key_averages(), "self_cpu_time_total"
    if torch.cuda.is_available():
        events, name = [event for event in events if event.device_type == DeviceType.CUDA], "self_device_time_total"
    total = sum(getattr(event, name) for event in events) or 1
    first = sorted(events, key=lambda event: -getattr(event, name))[:LARGEST]
    busy = f"{total / 1e6:.3f} of {took:.3f} s busy, {sum(event.count for event in events):,} kernels or operators"
    return [busy, *(f"{getattr(one, name) / total:.1%} {one.key[:90]} ({one.count} times)" for one in first)]


if __name__ == "__main__":
    main()
