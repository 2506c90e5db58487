"""Training steps at true shapes with random weights on one GPU, within eight minutes: one table last.

    python benchmarks/run.py --gpu
    python -m benchmarks.gpu --shape siglip_384_qwen1_5_7b 03 "04 LoRA"
    python -m benchmarks.gpu --shape tiny --samples 4 --seconds 400         on a CPU, to try it

Every line is a process of its own. MFU is given by two formulas: ours (vlm/train/flops.py: padding, recomputation and what
needs no gradient left out) and the naive 6 x parameters x tokens. Trainer runs as LLaVA's scripts have it: every layer
recomputed, DeepSpeed with float32 copies of bfloat16 weights, as ours has. The profile is of one step of step 04.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.train_step import CASES, MIB, memory, settings, useful_work

LIMIT = 460.0  # seconds
STEPS = 4  # the first is not timed


@dataclass(frozen=True)
class Line:
    """One training: whose, of what, and what is not as usual."""

    who: str  # ours | trainer
    case: str
    rows: int  # computed at once: samples of Trainer and where nothing is packed, else packs
    changes: dict[str, object] = field(default_factory=dict)  # of TrainConfig and its runtime
    profiled: bool = False


LINES = {
    "03": Line("ours", "captions", 8),
    "03, Trainer": Line("trainer", "captions", 8),
    "04 LoRA": Line("ours", "lora", 4, {"recompute": "none"}),
    "04 LoRA, Trainer": Line("trainer", "lora", 8),
    "04 full": Line("ours", "mixed", 2, {"recompute": "none"}),
    "04 full, Trainer": Line("trainer", "mixed", 4),
    "04 LoRA, recompute=selective": Line("ours", "lora", 4, {"recompute": "selective"}),
    "04 LoRA, recompute=full": Line("ours", "lora", 4, {"recompute": "full"}),
    "04 LoRA, not packed": Line("ours", "lora", 8, {"packing": False, "recompute": "none"}),
    "04 LoRA, deterministic": Line("ours", "lora", 4, {"recompute": "none", "deterministic": True}),
    "profile of 04 LoRA": Line("ours", "lora", 4, {"recompute": "none"}, profiled=True),
    "04 full, recompute=selective": Line("ours", "mixed", 4, {"recompute": "selective"}),
    "04 LoRA, compiled": Line("ours", "lora", 4, {"recompute": "none", "compile": True}),
}


def main() -> None:
    """Run the lines while there is time; print the table, the profile and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", nargs="*", help=f"of {', '.join(LINES)}; none: all")
    parser.add_argument("--shape", default="clip_l_336_qwen1_5_4b", help="of benchmarks/scaled.py")
    parser.add_argument("--samples", type=int, default=32, help="in a step")
    parser.add_argument("--seconds", type=float, default=LIMIT)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.steps = STEPS
    if unknown := set(chosen.lines) - set(LINES):
        parser.error(f"there is no line {', '.join(sorted(unknown))}: choose of {', '.join(LINES)}")
    names = chosen.lines or list(LINES)
    if chosen.make:
        make(chosen, chosen.make, {LINES[name].case for name in names})
        return
    if chosen.child:
        print(json.dumps(work(chosen, LINES[names[0]], *map(Path, chosen.child))))
        return
    began, found, gone = time.monotonic(), {}, {}
    with tempfile.TemporaryDirectory() as place:
        call(chosen, names, chosen.seconds, "--make", place)
        print(f"  model and corpora: {time.monotonic() - began:.0f} s", flush=True)
        longest = 0.0
        for name in names:
            left = chosen.seconds - (time.monotonic() - began)
            if left < longest:
                gone[name] = f"{left:.0f} seconds were left"
                continue
            start = time.monotonic()
            try:
                out = tempfile.mkdtemp(dir=place)
                found[name] = json.loads(call(chosen, [name], left, "--child", place, out).splitlines()[-1])
                took = time.monotonic() - start
                print(f"  {name}: {found[name]['rate']:.2f} samples/s ({took:.0f} s with its start)", flush=True)
            except RuntimeError as reason:
                gone[name] = str(reason)
                print(f"  {name}: {reason}", flush=True)
            longest = max(longest, time.monotonic() - start)
    print(table(found, gone))
    print(json.dumps({"shape": chosen.shape, "seconds": time.monotonic() - began, "lines": found, "left_out": gone}))


def make(chosen: argparse.Namespace, folder: Path, cases: set[str]) -> None:
    """Write the random model and the corpora of the cases."""
    from benchmarks import scaled
    from vlm.config import Form

    model = scaled.make_model(folder / "parts", scaled.SHAPES[chosen.shape])
    for name in sorted(cases):
        lengths = getattr(scaled, CASES[name].lengths)(chosen.samples * STEPS, np.random.default_rng(0))
        (folder / name).mkdir()
        scaled.make_shards(folder / name, model, lengths, Form(CASES[name].form))


def call(chosen: argparse.Namespace, names: list[str], left: float, *more: str) -> str:
    """Return what a process of its own prints for these lines. Raises RuntimeError with its last word if it fails."""
    command = [sys.executable, "-m", "benchmarks.gpu", *names, "--shape", chosen.shape]
    command += ["--samples", str(chosen.samples), *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it did not end within the {left:.0f} seconds that were left") from None
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        raise RuntimeError((told or ["it wrote nothing"])[-1][:300])
    return done.stdout


def work(chosen: argparse.Namespace, line: Line, folder: Path, out: Path) -> dict:
    """Train; return rate, memory, work of a sample and, if asked, the five largest costs of a step."""
    import torch
    from transformers import LlavaForConditionalGeneration

    from vlm.config import ModelConfig, Recompute
    from vlm.train.engine import join_ranks
    from vlm.train.preflight import estimate

    chosen.our_rows = line.rows
    cfg = settings(chosen, CASES[line.case])
    changes = dict(line.changes)
    if "recompute" in changes:
        changes["recompute"] = Recompute(changes["recompute"])
    of_runtime = {key: value for key, value in changes.items() if hasattr(cfg.runtime, key)}
    rest = {key: value for key, value in changes.items() if key not in of_runtime}
    cfg = replace(cfg, runtime=replace(cfg.runtime, **of_runtime), **rest)
    base, split = folder / "parts/model", folder / line.case / "shards/finetune"
    start = memory("VmRSS")
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
    return {
        "rate": chosen.samples / statistics.median(seconds[1:]),
        "peak_mib": (torch.cuda.max_memory_allocated() if on_gpu else memory("VmHWM") - start) / MIB,
        "foreseen_mib": foreseen,
        "losses": losses,
        "seconds": seconds,
        "naive_flops_per_sample": 6 * weights * useful["tokens_per_sample"],
        "costs": costs,
        **useful,
    }


def train_ours(
    cfg: object, base: Path, split: Path, out: Path, profiled: bool
) -> tuple[list[float], list[float], list[str]]:
    """Train as the stages do, without saving; return seconds and losses of the steps, and the largest costs of the third."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from vlm.train import loop, run
    from vlm.train.checkpoint import Checkpoints
    from vlm.train.run import train

    Checkpoints.save = lambda *_: None
    run.write_probe = run._export = lambda *_: None  # after training: no part of what is timed
    costs: list[str] = []
    if profiled:
        steps, whole = [0], loop.take_step
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

        def take_step(*given: object) -> object:
            steps[0] += 1
            if steps[0] != STEPS - 1:
                return whole(*given)
            with profile(activities=kinds) as seen:
                done = whole(*given)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            costs.extend(largest(seen))
            return done

        loop.take_step = take_step
    train(cfg, 0, base=base, split=split, out=out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds_per_step"] for row in rows], [row["loss"] for row in rows], costs


def largest(seen: "torch.profiler.profile", count: int = 5) -> list[str]:  # noqa: F821 - imported by its caller
    """Return the operators or kernels that took most of the device's time by themselves, with their share."""
    from torch.autograd import DeviceType

    events = seen.key_averages()
    # an operator has the time of its kernels too
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    events, name = (kernels, "self_device_time_total") if kernels else (events, "self_cpu_time_total")
    total = sum(getattr(event, name) for event in events) or 1
    first = sorted(events, key=lambda event: -getattr(event, name))[:count]
    return [f"{getattr(event, name) / total:.1%} {event.key[:90]} ({event.count} times)" for event in first]


def table(found: dict[str, dict], gone: dict[str, str]) -> str:
    """Return the lines, the profile under them, and what is missing."""
    lines = [
        f"{'':32}{'samples/s':>11}{'tokens/s':>11}{'MFU':>8}{'naive 6N':>10}{'peak GiB':>10}{'foreseen':>10}{'x Trainer':>11}"
    ]
    for name, one in found.items():
        tokens = one["rate"] * one["tokens_per_sample"]
        shares = [
            f"{100 * one['rate'] * one[kind] / one['peak_flops']:.1f} %" if one["peak_flops"] else "-"
            for kind in ("flops_per_sample", "naive_flops_per_sample")
        ]
        peer = found.get(f"{name.split(', ')[0].removeprefix('profile of ')}, Trainer")
        foreseen = f"{one['foreseen_mib'] / 1024:.1f}" if one["foreseen_mib"] else "-"
        times = f"{one['rate'] / peer['rate']:.2f}" if peer else "-"
        lines.append(
            f"{name:32}{one['rate']:>11.2f}{tokens:>11,.0f}{shares[0]:>8}{shares[1]:>10}"
            f"{one['peak_mib'] / 1024:>10.1f}{foreseen:>10}{times:>11}"
        )
    lines += [f"  {cost}" for one in found.values() for cost in one["costs"]]
    lines += [f"not measured: {name}: {reason}" for name, reason in gone.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
