"""Stage 04: teach the model to follow instructions about pictures.

Reads   03_pretrain  the model with its trained projector
        02_shard     finetune/: conversations
Writes  04_finetune  model/ merged and complete, adapter/ for LoRA and QLoRA, metrics.jsonl, checkpoints/

    python stages/04_finetune.py finetune=lora
    torchrun --nproc-per-node 4 stages/04_finetune.py finetune=full

Run it again to resume.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from vlm.config import RootConfig, Strategy
from vlm.pipeline.artifact import write_figures
from vlm.pipeline.preflight import Machine
from vlm.pipeline.stage import Stage, start


def work(cfg: RootConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Train what the strategy names on conversations."""
    from vlm.eval.suite import Suite
    from vlm.model.card import write_cards
    from vlm.model.verify import check
    from vlm.train.run import train

    base, shards = inputs["03_pretrain"] / "model", inputs["02_shard"]
    suite = Suite.of(cfg.finetune.evaluation, cfg.seed, base=base, shards=shards, out=out)
    figures = train(cfg.finetune, cfg.seed, base=base, split=shards / "finetune", out=out, ask=suite)
    figures |= check(out, base, quantised=cfg.finetune.strategy is Strategy.qlora)
    write_cards(out, inputs, "finetune", cfg.finetune, figures)
    write_figures(out, figures)


def estimate(cfg: RootConfig, inputs: Mapping[str, Path], machine: Machine) -> dict[str, Any]:
    """Estimate the training from the shards and the model's config; no weight is read."""
    from vlm.train.preflight import figures

    return figures(
        cfg.finetune, cfg.seed, cfg.model, base=inputs.get("03_pretrain"), shards=inputs.get("02_shard"), split="finetune",
        max_tokens=cfg.data.max_tokens, ranks=machine.ranks, is_gpu=machine.is_gpu, zeros=machine.zeros,
    )  # fmt: skip


stage = Stage(
    __file__,
    ("03_pretrain", "02_shard"),
    ("seed", "finetune"),
    work,
    distributed=True,
    estimate=estimate,
    may_grow=("finetune.epochs", "finetune.steps"),
)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
