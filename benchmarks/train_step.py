"""A training step beside transformers' Trainer: the same weights, samples and optimizer, in one run, taking turns.

    python -m benchmarks.train_step                        at a scaled shape on a CPU, about 15 minutes
    python -m benchmarks.train_step captions mixed         some of the cases
    python -m benchmarks.train_step --shape clip_l_336_qwen1_5_4b --samples 64      at the true size, on a GPU

Each contestant trains in a process of its own. Speed is the median of its steps but the first. Memory is the highest
of a run of its own, above what the process held before the model was loaded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.timing import load

RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc else keeps what was freed; slow, so not while timing
CONTESTANTS = ("ours", "trainer")
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One comparison: what trains, on which lengths, in which form."""

    strategy: str
    lengths: str  # of benchmarks/scaled.py
    form: str
    pack_tokens: int
    recompute: str = "none"  # of ours; Trainer recomputes all layers


CASES = {
    "captions": Case("projector", "captions", "plain", 640),  # 03
    "full": Case("full", "equal", "chat", 1024),  # 04, equal lengths
    "mixed": Case("full", "mixed", "chat", 2048, "selective"),  # 04, lengths as in LLaVA's 665k, packed
    "lora": Case("lora", "mixed", "chat", 2048),
}
RATES = {"projector": ("projector",), "full": ("projector", "language_model", "vision_tower")}
RATES["lora"] = ("projector", "lora")


def main() -> None:
    """Time every case; print the tables and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--shape", default="scaled", help="of benchmarks/scaled.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a round; the first is not timed")
    parser.add_argument("--samples", type=int, default=16, help="in a step")
    parser.add_argument("--rows", type=int, default=4, help="that Trainer computes at once")
    parser.add_argument("--our-rows", type=int, default=1, help="packs that we compute at once")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := set(chosen.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}: choose of {', '.join(CASES)}")
    if chosen.child:
        contestant, case, folder, out = chosen.child
        print(json.dumps(run_child(chosen, contestant, CASES[case], Path(folder), Path(out))))
        return
    found: dict[str, dict] = {"cpus": os.cpu_count(), "load_before": load(), "settings": vars(chosen)}
    for name in chosen.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = compare(chosen, name, Path(folder))
    found["load_after"] = load()
    print(f"load average {found['load_before']} before, {found['load_after']} after, {found['cpus']} processors")
    print(json.dumps(found))


def compare(chosen: argparse.Namespace, name: str, folder: Path) -> dict:
    """Let both contestants train on one case; print and return medians, spreads and ratios."""
    from benchmarks import scaled
    from vlm.config import Form

    case = CASES[name]
    print(f"{name}: {case.strategy} on {case.lengths} lengths", flush=True)
    model = scaled.make_model(folder / "parts", scaled.SHAPES[chosen.shape])
    make: Callable = getattr(scaled, case.lengths)
    samples = make(chosen.samples * chosen.steps, np.random.default_rng(0))
    (folder / "corpus").mkdir()
    scaled.make_shards(folder / "corpus", model, samples, Form(case.form))

    def run(contestant: str, **environment: str) -> dict:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            options = ["--steps", chosen.steps, "--samples", chosen.samples, "--rows", chosen.rows]
            options += [
                "--our-rows",
                chosen.our_rows,
                "--shape",
                chosen.shape,
                "--child",
                contestant,
                name,
                folder,
                out,
            ]
            command = [sys.executable, "-m", "benchmarks.train_step", *map(str, options)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
            if done.returncode:
                raise SystemExit(f"{contestant} failed on {name}; its reason stands above")
            return json.loads(done.stdout.splitlines()[-1])

    results = {contestant: [] for contestant in CONTESTANTS}
    for number in range(chosen.rounds):
        for contestant in CONTESTANTS:
            results[contestant].append(run(contestant))
            rate = results[contestant][-1]["samples_per_second"]
            print(f"  round {number + 1}: {contestant} {rate:.3f} samples/s", flush=True)
    memory = {contestant: run(contestant, **RETURNS_MEMORY)["peak_mib"] for contestant in CONTESTANTS}
    return table(results, memory)


def table(results: dict[str, list[dict]], memory: dict[str, float]) -> dict:
    """Print the medians of both contestants and their ratios; return them."""
    found: dict = {}
    print(
        f"  {'':10}{'samples/s, lowest to highest':>32}{'tokens/s':>10}{'MFU':>8}{'peak MiB':>10}   losses of the steps"
    )
    for contestant, rounds in results.items():
        rates = [one["samples_per_second"] for one in rounds]
        one = rounds[0]
        middle = statistics.median(rates)
        tokens = middle * one["tokens_per_sample"]
        mfu = f"{100 * middle * one['flops_per_sample'] / one['peak_flops']:.1f} %" if one["peak_flops"] else "-"
        shown = f"{middle:.3f} ({min(rates):.3f} to {max(rates):.3f})"
        losses = " ".join(f"{loss:.4f}" for loss in one["losses"])
        print(f"  {contestant:10}{shown:>32}{tokens:>10,.0f}{mfu:>8}{memory[contestant]:>10,.0f}   {losses}")
        found[contestant] = one | {"samples_per_second": rates, "peak_mib": memory[contestant]}
    ours, theirs = (statistics.median(found[name]["samples_per_second"]) for name in CONTESTANTS)
    found["speed_ratio"] = ours / theirs
    found["memory_ratio"] = memory["ours"] / memory["trainer"]
    print(f"  {found['speed_ratio']:.2f} x the samples/s, {found['memory_ratio']:.2f} x the memory", flush=True)
    return found


def run_child(chosen: argparse.Namespace, contestant: str, case: Case, folder: Path, out: Path) -> dict:
    """Train as one contestant; return its rate, memory and losses."""
    import torch
    from transformers import LlavaForConditionalGeneration

    from vlm.train.engine import join_ranks

    cfg = settings(chosen, case)
    base, split = folder / "parts/model", folder / "corpus/shards/finetune"
    if contestant == "ours":
        join_ranks()
    torch.nn.functional.linear(torch.randn(512, 512), torch.randn(512, 512))  # the library's own buffers
    start = memory("VmRSS")
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    seconds, losses = (train_ours if contestant == "ours" else train_peer)(chosen, cfg, base, split, out)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory("VmHWM") - start
    with torch.device("meta"):
        shell = LlavaForConditionalGeneration(LlavaForConditionalGeneration.config_class.from_pretrained(base))
    return {
        "samples_per_second": chosen.samples / statistics.median(seconds[1:]),
        "peak_mib": peak / MIB,
        "losses": losses,
        **useful_work(cfg, shell, base, split),
    }


def train_ours(
    chosen: argparse.Namespace, cfg: object, base: Path, split: Path, out: Path
) -> tuple[list[float], list[float]]:
    """Train as stages 03 and 04 do, without saving; return seconds and losses of the steps."""
    from vlm.train.checkpoint import Checkpoints
    from vlm.train.run import train

    Checkpoints.save = lambda *_: None  # Trainer does not save while it is timed either
    train(cfg, 0, base=base, split=split, out=out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds_per_step"] for row in rows], [row["loss"] for row in rows]


def train_peer(
    chosen: argparse.Namespace, cfg: object, base: Path, split: Path, out: Path
) -> tuple[list[float], list[float]]:
    """Train with transformers' Trainer; return seconds and losses of the steps."""
    from benchmarks.trainer import train

    clock = train(cfg, 0, base=base, split=split, out=out, rows=chosen.rows)
    return clock.seconds, clock.losses


def settings(chosen: argparse.Namespace, case: Case) -> "TrainConfig":  # noqa: F821 - imported below, with torch
    """Return the training of a case."""
    from benchmarks.scaled import SHAPES
    from vlm.config import LearningRates, LoraConfig, Recompute, Strategy, TrainConfig, TrainRuntime

    recompute = Recompute(case.recompute)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return TrainConfig(
        strategy=Strategy(case.strategy),
        steps=chosen.steps,
        samples_per_step=chosen.samples,
        pack_tokens=case.pack_tokens,
        warmup_ratio=0.0,  # the two begin a warm-up one step apart
        dtype=SHAPES[chosen.shape].dtype,
        lr=LearningRates(**dict.fromkeys(RATES[case.strategy], 1e-4)),
        lora=LoraConfig(rank=32, alpha=64.0, dropout=0.0, targets=targets),
        deepspeed={"zero_optimization": {"stage": 0}},
        runtime=TrainRuntime(
            rows_at_once=chosen.our_rows, workers=1, log_every=1, save_every=10_000, recompute=recompute
        ),
    )


def useful_work(cfg: "TrainConfig", shell: object, base: Path, split: Path) -> dict:  # noqa: F821
    """Return tokens and operations of a sample, padding and recomputation left out, by vlm/train/flops.py."""
    import torch

    from vlm import ranks
    from vlm.data.chat import Chat
    from vlm.data.index import Split
    from vlm.train import strategy
    from vlm.train.flops import Cost, peak_flops

    model, _ = strategy.choose(shell, cfg.strategy, cfg.train, cfg.lora, lambda: torch.manual_seed(0))
    rows = Split(split).rows
    tokens, targets, images = (int(rows[name].sum()) for name in ("tokens", "targets", "images"))
    cost = Cost.of(model, Chat.of_model(base).image_tokens)
    return {
        "tokens_per_sample": tokens / len(rows),
        "flops_per_sample": cost.of_step(tokens, targets, images) / len(rows),
        "peak_flops": peak_flops(ranks.device(), None),
    }


def memory(name: str) -> int:
    """Return a figure of /proc/self/status, bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
