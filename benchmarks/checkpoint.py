"""Bytes and seconds of a checkpoint of stage 03, beside transformers' Trainer with DeepSpeed.

    python -m benchmarks.checkpoint          about a minute

The model is random, with a tenth of the true widths and all true layers: what is frozen then has its true share.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np


def main() -> None:
    """Let both save once; print a line of what it took and, last, everything as one line of JSON."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = save_both(Path(folder))
        found = {
            "ours": {"bytes": size(Path(folder) / "ours/checkpoints"), "seconds": seconds["ours"]},
            "trainer": {"bytes": size(Path(folder) / "peer/checkpoint-1"), "seconds": seconds["trainer"]},
        }
    for name, one in found.items():
        print(f"checkpoint of 03: {name:8} {one['bytes']:>14,} bytes {one['seconds']:>8.2f} s")
    print(json.dumps(found))


def save_both(folder: Path) -> dict[str, float]:
    """Train one step of stage 03 as each contestant, with one checkpoint; return the seconds that it took."""
    from benchmarks import scaled, trainer
    from benchmarks.train_step import CASES, settings
    from vlm.config import Form
    from vlm.train.checkpoint import Checkpoints
    from vlm.train.run import train

    model = scaled.make_model(folder / "parts", scaled.DEEP)
    for name in ("corpus", "ours"):
        (folder / name).mkdir()
    split = scaled.make_shards(folder / "corpus", model, scaled.captions(2, np.random.default_rng(0)), Form.plain)
    cfg = settings(argparse.Namespace(steps=1, samples=2, shape="deep", our_rows=1), CASES["captions"])
    seconds: dict[str, float] = {}
    save, their_save = Checkpoints.save, trainer.InOrder._save_checkpoint

    def timed(checkpoints: Checkpoints, engine: object, progress: object) -> None:
        start = time.perf_counter()
        save(checkpoints, engine, progress)
        checkpoints.settle(engine)  # it is written beside the training; here all of it counts
        seconds["ours"] = time.perf_counter() - start

    def theirs_timed(*given: object, **named: object) -> None:
        start = time.perf_counter()
        their_save(*given, **named)
        seconds["trainer"] = time.perf_counter() - start

    Checkpoints.save, trainer.InOrder._save_checkpoint = timed, theirs_timed
    train(replace(cfg, runtime=replace(cfg.runtime, workers=0)), 0, base=model, split=split, out=folder / "ours")
    trainer.train(cfg, 0, base=model, split=split, out=folder / "peer", rows=2, deepspeed=trainer.ZERO_2)
    return seconds


def size(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
