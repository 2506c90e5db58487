"""Stage 03: teach the projector to speak the language model's embedding space.

Reads   01_assemble  vision tower, projector and language model, before any training
        02_shard     pretrain/: pictures with captions
Writes  03_pretrain  model/ with the trained projector, metrics.jsonl, checkpoints/

    python stages/03_pretrain.py                          here, in this process
    torchrun --nproc-per-node 4 stages/03_pretrain.py     here, on four GPUs

Run it again to resume.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from vlm.config import RootConfig
from vlm.pipeline.artifact import write_figures
from vlm.pipeline.preflight import Machine
from vlm.pipeline.stage import Stage, start


def work(cfg: RootConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Train the projector on captions."""
    from vlm.eval.suite import Suite
    from vlm.model.card import write_cards
    from vlm.model.verify import check
    from vlm.train.run import train

    base, shards = inputs["01_assemble"] / "model", inputs["02_shard"]
    suite = Suite.of(cfg.pretrain.evaluation, cfg.seed, base=base, shards=shards, out=out)
    figures = train(cfg.pretrain, cfg.seed, base=base, split=shards / "pretrain", out=out, ask=suite)
    figures |= check(out, base, quantised=False)
    write_cards(out, inputs, "pretrain", cfg.pretrain, figures)
    write_figures(out, figures)


def estimate(cfg: RootConfig, inputs: Mapping[str, Path], machine: Machine) -> dict[str, Any]:
    """Estimate the training from the shards and the model's config; no weight is read."""
    from vlm.train.preflight import figures

    return figures(
        cfg.pretrain, cfg.seed, cfg.model, base=inputs.get("01_assemble"), shards=inputs.get("02_shard"), split="pretrain",
        max_tokens=cfg.data.max_tokens, ranks=machine.ranks, is_gpu=machine.is_gpu, zeros=machine.zeros,
    )  # fmt: skip


stage = Stage(
    __file__,
    ("01_assemble", "02_shard"),
    ("seed", "pretrain"),
    work,
    distributed=True,
    estimate=estimate,
    may_grow=("pretrain.epochs", "pretrain.steps"),
)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
