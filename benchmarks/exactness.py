"""What must be equal, and how equal it is: resumed runs, other numbers of ranks, packs, frozen weights.

    python -m benchmarks.exactness                     everything, on a tiny model on a CPU: some minutes
    python -m benchmarks.exactness losses > before     the losses of fixed short runs, to compare after a change
    python -m benchmarks.exactness resume --full       every file of every step's checkpoint is broken into

Prints a table for each part. Ends with status 1 if something that must be equal is not.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

LIVES = Path(__file__).parents[1] / "tests/train/lives.py"  # trains, and dies where it is told to
STEPS = 6
FILES = ("weights.safetensors", "optimizer.safetensors", "progress.json", "COMPLETE")
BOUNDARIES = [[step, None] for step in range(1, STEPS + 1)]
FEW = sorted([*BOUNDARIES, *zip((2, 3, 4, 5), map(str, FILES), strict=True)], key=lambda kill: kill[0])
ALL = sorted([*BOUNDARIES, *map(list, product(range(1, STEPS + 1), FILES))], key=lambda kill: kill[0])
LOSS, NORM, GRADIENT = 1e-5, 1e-4, 1e-5  # largest relative differences that are rounding


@dataclass(frozen=True)
class Way:
    """One way to carry out a training."""

    ranks: int
    zero: int
    workers: int
    packing: bool
    strategy: str  # lora has dropout
    rows: int  # packs at once; 1 accumulates, 8 does not

    def __str__(self) -> str:
        packs = "packed" if self.packing else "unpacked"
        grown = "accumulates" if self.rows == 1 else "at once"
        return f"{self.ranks} rank(s), ZeRO {self.zero}, {self.workers} workers, {packs}, {self.strategy}, {grown}"


WAYS = [  # every pair of values of any two of the six; the run's two epochs are in each
    Way(2, 2, 2, True, "freeze_vision", 8),
    Way(1, 2, 0, False, "lora", 1),
    Way(1, 0, 2, True, "freeze_vision", 1),
    Way(2, 0, 0, False, "lora", 8),
    Way(2, 1, 2, False, "freeze_vision", 1),
    Way(1, 1, 0, True, "freeze_vision", 8),
    Way(1, 1, 2, True, "lora", 1),
]


class Bench:
    """A tiny model and its shards, in a folder that goes away."""

    def __init__(self, folder: Path) -> None:
        from benchmarks import scaled
        from vlm.config import Form

        shape = scaled.Shape((32, 2, 64, 4), 512, (16, 2, 32, 2), picture=(32, 16))
        self.folder = folder
        self.model = scaled.make_model(folder / "parts", shape)
        (folder / "corpus").mkdir()
        lengths = np.random.default_rng(0).integers(4, 40, (24, 2))
        samples = [(number % 5 != 3, int(asked), int(told)) for number, (asked, told) in enumerate(lengths)]
        self.split = scaled.make_shards(folder / "corpus", self.model, samples, Form.chat)

    def train(self, cfg: object, name: str, ranks: int = 1, kills: list | None = None) -> Path:
        """Train in processes of its own, killed where `kills` says; return the folder."""
        from omegaconf import OmegaConf

        out, settings = self.folder / name, self.folder / f"{name}.yaml"
        settings.write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
        command = [sys.executable, LIVES, settings, self.model, self.split, out, ranks, json.dumps(kills or [])]
        alone = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=alone)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        return out


def settings(strategy: str = "freeze_vision", zero: int = 0, **changes: object) -> "TrainConfig":  # noqa: F821 - torch
    """Return a training of six steps of eight samples, which are two epochs."""
    from vlm.config import LearningRates, LoraConfig, Strategy, TrainConfig, TrainRuntime

    runtime = {"rows_at_once": 1, "workers": 0, "log_every": 1, "save_every": 1, "keep": 2} | changes.pop("runtime", {})
    return TrainConfig(
        strategy=Strategy(strategy),
        deepspeed={"zero_optimization": {"stage": zero}},
        lr=LearningRates(projector=1e-2, language_model=2e-3, vision_tower=1e-3, lora=1e-2),
        lora=LoraConfig(rank=4, alpha=8.0, dropout=0.1, targets=["q_proj", "v_proj", "down_proj"]),
        runtime=TrainRuntime(**runtime),
        **{"steps": STEPS, "samples_per_step": 8, "pack_tokens": 192, "warmup_ratio": 0.2, "weight_decay": 0.01}
        | changes,
    )


def rows(out: Path) -> list[dict]:
    """Return what a run logged of its steps."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def hash_of(out: Path) -> str:
    """Return a hash of the exported weights, its first 12 digits."""
    digest = hashlib.sha256()
    for file in sorted((out / "model").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def difference(ours: list[float], theirs: list[float]) -> float:
    """Return the largest relative difference."""
    return max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))


def resume(bench: Bench, full: bool) -> Iterator[bool]:
    """1. Killed by SIGKILL after every step and inside every file of a checkpoint: the bits of an unbroken run."""
    print("\n1. a run that is killed again and again beside an unbroken one: sample ids, losses, weights")
    kills = ALL if full else FEW
    for number, way in enumerate(WAYS):
        runtime = {"rows_at_once": way.rows, "workers": way.workers}
        cfg = settings(way.strategy, way.zero, packing=way.packing, runtime=runtime)
        unbroken = bench.train(cfg, f"unbroken{number}", way.ranks)
        killed = bench.train(cfg, f"killed{number}", way.ranks, kills)
        same_ids = (killed / "plan.npy").read_bytes() == (unbroken / "plan.npy").read_bytes()
        one, other = ([(row["step"], row["samples"], row["loss"]) for row in rows(out)] for out in (killed, unbroken))
        hashes = hash_of(killed), hash_of(unbroken)
        equal = same_ids and one == other and hashes[0] == hashes[1]
        print(f"  {say(equal)}  {way}; {len(kills)} kills; last loss {one[-1][2]:.9g}; weights {hashes[0]}", flush=True)
        yield equal


def elastic(bench: Bench, full: bool) -> Iterator[bool]:
    """2. Other numbers of ranks and micro-batches, packs or none, going on with other ranks."""
    print(f"\n2. the same steps, carried out otherwise: losses to {LOSS:g}, gradient norms to {NORM:g}")
    for zero in (0, 1, 2, 3) if full else (0, 2):
        cfg = settings("full", zero, packing=False, runtime={"keep": STEPS})
        one, two = bench.train(cfg, f"one_{zero}"), bench.train(cfg, f"two_{zero}", 2)
        packed, four = bench.train(settings("full", zero), f"packed_{zero}"), bench.train(cfg, f"four_{zero}", 4)
        for name, out in (("packed", packed), ("2 ranks", two), ("4 ranks", four)):
            yield close(f"ZeRO {zero}, {name} beside 1 rank unpacked", out, one)
        for ranks in (1, 4):
            begun = bench.folder / f"begun_{zero}_{ranks}"
            shutil.copytree(two, begun)
            for step in range(STEPS // 2 + 1, STEPS + 1):
                shutil.rmtree(begun / f"checkpoints/step_{step:06d}")
            yield close(f"ZeRO {zero}, begun on 2 ranks, ended on {ranks}", bench.train(cfg, begun.name, ranks), one)


def close(name: str, out: Path, other: Path) -> bool:
    """Print how far two runs are apart; say whether that is rounding."""
    loss, norm = (
        difference(*([row[key] for row in rows(one)] for one in (out, other))) for key in ("loss", "grad_norm")
    )
    same = (out / "plan.npy").read_bytes() == (other / "plan.npy").read_bytes()
    equal = same and loss <= LOSS and norm <= NORM
    ids = "equal" if same else "OTHER"
    print(f"  {say(equal)}  {name}: sample ids {ids}, losses {loss:.1e}, gradient norms {norm:.1e} apart", flush=True)
    return equal


def isolation(bench: Bench, full: bool) -> Iterator[bool]:
    """3. The gradient of a pack is the sum of its samples' own, by transformers alone."""
    from benchmarks.isolation import gradients_apart

    print(f"\n3. gradients of a pack beside the sum of its samples': to {GRADIENT:g}; and with isolation turned off")
    for family, attention in product(("qwen2", "qwen3", "llama"), ("sdpa", "eager")):
        given = (bench.model, bench.split, settings(), family, attention)
        apart, off = gradients_apart(*given), gradients_apart(*given, one_run=True)
        equal = apart <= GRADIENT < 1e-2 < off
        print(f"  {say(equal)}  {family}, {attention}: {apart:.1e} apart; turned off {off:.1e}", flush=True)
        yield equal


def frozen(bench: Bench, full: bool) -> Iterator[bool]:
    """4. What is frozen keeps every bit over fifty steps."""
    from vlm.config import Strategy
    from vlm.train import run as training

    print("\n4. frozen weights over 50 steps, by hash of their bytes")
    fit, seen = training.fit, {}

    def watched(engine: object, *rest: object, **named: object) -> object:
        for when in ("before", "after"):
            digest = hashlib.sha256()
            stays = [(name, weight) for name, weight in engine.module.named_parameters() if not weight.requires_grad]
            for _, weight in stays:
                digest.update(weight.detach().contiguous().view(-1).numpy().tobytes())
            seen[when] = digest.hexdigest()[:12], len(stays)
            if when == "before":
                done = fit(engine, *rest, **named)
        return done

    training.fit = watched
    for strategy in Strategy:
        out = bench.folder / f"frozen_{strategy.value}"
        out.mkdir()
        cfg = settings(strategy.value, samples_per_step=4, steps=50, runtime={"save_every": 100})
        training.train(cfg, 0, base=bench.model, split=bench.split, out=out)
        equal = seen["before"] == seen["after"]
        print(f"  {say(equal)}  {strategy.value}: {seen['after'][1]} frozen tensors, {seen['after'][0]}", flush=True)
        yield equal
    training.fit = fit


def losses(bench: Bench, full: bool) -> Iterator[bool]:
    """Fixed short runs, one a strategy: a change that must not alter numbers prints the same before and after."""
    print("\nlosses of fixed short runs, and their weights")
    for strategy in ("projector", "full", "freeze_vision", "lora"):
        out = bench.train(settings(strategy), f"losses_{strategy}")
        values = " ".join(f"{row['loss']:.9g}" for row in rows(out))
        print(f"  {strategy}: {values}  {hash_of(out)}", flush=True)
        yield True


def say(equal: bool) -> str:
    """Return the word for a line, of one width."""
    return "yes" if equal else "NO "


PARTS = {"losses": losses, "resume": resume, "elastic": elastic, "isolation": isolation, "frozen": frozen}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--full", action="store_true", help="every file of every checkpoint, every ZeRO stage")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            bench = Bench(Path(folder))
        equal = [one for name in chosen.parts or PARTS for one in PARTS[name](bench, chosen.full)]
    print(f"\n{sum(equal)} of {len(equal)} lines as they must be")
    sys.exit(not all(equal))


if __name__ == "__main__":
    main()
