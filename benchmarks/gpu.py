"""Training steps at true shapes with random weights on one GPU, within eight minutes: one table last.

    python benchmarks/run.py --gpu
    python -m benchmarks.gpu --shape siglip_384_qwen1_5_7b 03 "04 LoRA"
    python -m benchmarks.gpu --shape tiny --samples 4 --seconds 400         on a CPU, to try it

Every line is a process of its own (benchmarks/gpu_line.py), which imports what it needs while others work and then waits
for its turn. MFU is given by two formulas: ours (vlm/train/flops.py: padding, recomputation and what needs no gradient
left out) and the naive 6 x parameters x tokens. Trainer runs as LLaVA's scripts have it: every layer recomputed, DeepSpeed
with float32 copies of bfloat16 weights, as ours has. The profile is of the last step of a line, which is not timed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field

LIMIT = 460.0  # seconds
LINE_LIMIT = 90.0  # of one line; more where a third of what is left is more


@dataclass(frozen=True)
class Line:
    """One training: whose, of what, and what is not as usual."""

    who: str  # ours | trainer
    case: str  # of benchmarks/train_step.py
    rows: int  # computed at once: samples of Trainer and where nothing is packed, else packs
    changes: dict[str, object] = field(default_factory=dict)  # of TrainConfig and its runtime
    profiled: bool = False


LINES = {
    "03": Line("ours", "captions", 16),
    "03, Trainer": Line("trainer", "captions", 8),
    "04 LoRA": Line("ours", "lora", 8, profiled=True),
    "04 LoRA, Trainer": Line("trainer", "lora", 8),
    "04 LoRA, compiled": Line("ours", "lora", 8, {"compile": True}, profiled=True),
    "04 full": Line("ours", "mixed", 4, {"recompute": "none"}),
    "04 full, Trainer": Line("trainer", "mixed", 4),
    "03, compiled": Line("ours", "captions", 16, {"compile": True}),
    "04 full, compiled": Line("ours", "mixed", 4, {"recompute": "none", "compile": True}),
    "04 LoRA, deterministic": Line("ours", "lora", 8, {"deterministic": True}),
    "04 LoRA, recompute=selective": Line("ours", "lora", 8, {"recompute": "selective"}),
    "04 LoRA, recompute=full": Line("ours", "lora", 8, {"recompute": "full"}),
    "04 LoRA, 4 packs at once": Line("ours", "lora", 4),
    "04 LoRA, not packed": Line("ours", "lora", 16, {"packing": False}),
    "04 full, recompute=full": Line("ours", "mixed", 4, {"recompute": "full"}),
}


def main() -> None:
    """Run the lines while there is time; print the table, the profiles and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", nargs="*", help=f"of {', '.join(LINES)}; none: all")
    parser.add_argument("--shape", default="clip_l_336_qwen1_5_4b", help="of benchmarks/scaled.py")
    parser.add_argument("--samples", type=int, default=32, help="in a step")
    parser.add_argument("--seconds", type=float, default=LIMIT)
    chosen = parser.parse_args()
    if unknown := set(chosen.lines) - set(LINES):
        parser.error(f"there is no line {', '.join(sorted(unknown))}: choose of {', '.join(LINES)}")
    names = chosen.lines or list(LINES)
    began, found, gone = time.monotonic(), {}, {}
    with tempfile.TemporaryDirectory() as place:
        made = begin(chosen, "make", ",".join(sorted({LINES[name].case for name in names})), place)
        waiting = deque(names)
        ready = {name: begin(chosen, "train", name, place) for name in take(waiting, (os.cpu_count() or 1) // 2 or 1)}
        try:
            finish(made, chosen.seconds)
        except RuntimeError as reason:
            raise SystemExit(f"no model or corpora: {reason}") from None
        print(f"  model and corpora: {time.monotonic() - began:.0f} s", flush=True)
        for name in names:
            left, start = chosen.seconds - (time.monotonic() - began), time.monotonic()
            try:
                found[name] = json.loads(finish(ready[name], min(left, max(LINE_LIMIT, left / 3))).splitlines()[-1])
                print(f"  {name}: {found[name]['rate']:.2f} samples/s ({time.monotonic() - start:.0f} s)", flush=True)
            except RuntimeError as reason:
                gone[name] = str(reason)
                print(f"  {name}: {reason}", flush=True)
            ready |= {name: begin(chosen, "train", name, place) for name in take(waiting, 1)}
    print(table(found, gone))
    print(json.dumps({"shape": chosen.shape, "seconds": time.monotonic() - began, "lines": found, "left_out": gone}))


def take(waiting: deque[str], count: int) -> list[str]:
    """Take up to `count` names from the front."""
    return [waiting.popleft() for _ in range(min(count, len(waiting)))]


def begin(chosen: argparse.Namespace, do: str, what: str, place: str) -> subprocess.Popen:
    """Start a process that imports what it needs and waits for its turn: `make` cases or `train` a line."""
    command = [sys.executable, "-m", "benchmarks.gpu_line", do, what, place, chosen.shape, str(chosen.samples)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes)


def finish(process: subprocess.Popen, left: float) -> str:
    """Give a process its turn and return what it prints. Raises RuntimeError with its last word if it fails."""
    try:
        out, told = process.communicate("go\n", timeout=max(left, 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"it did not end within {max(left, 0):.0f} seconds") from None
    if process.returncode:
        lines = [line for line in told.splitlines() if "Error" in line] or told.splitlines()
        raise RuntimeError((lines or ["it wrote nothing"])[-1][:300])
    return out


def table(found: dict[str, dict], gone: dict[str, str]) -> str:
    """Return the lines, the profiles under them, and what is missing."""
    lines = [
        f"{'':32}{'samples/s':>11}{'tokens/s':>11}{'MFU':>8}{'naive 6N':>10}{'peak GiB':>10}{'foreseen':>10}{'x Trainer':>11}"
    ]
    for name, one in found.items():
        tokens = one["rate"] * one["tokens_per_sample"]
        shares = [
            f"{100 * one['rate'] * one[kind] / one['peak_flops']:.1f} %" if one["peak_flops"] else "-"
            for kind in ("flops_per_sample", "naive_flops_per_sample")
        ]
        peer = found.get(f"{name.split(', ')[0]}, Trainer")
        foreseen = f"{one['foreseen_mib'] / 1024:.1f}" if one["foreseen_mib"] else "-"
        times = f"{one['rate'] / peer['rate']:.2f}" if peer else "-"
        lines.append(
            f"{name:32}{one['rate']:>11.2f}{tokens:>11,.0f}{shares[0]:>8}{shares[1]:>10}"
            f"{one['peak_mib'] / 1024:>10.1f}{foreseen:>10}{times:>11}"
        )
    for name, one in found.items():
        lines += [f"a step of {name}:", *(f"  {cost}" for cost in one["costs"])] if one["costs"] else []
    lines += [f"not measured: {name}: {reason}" for name, reason in gone.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
