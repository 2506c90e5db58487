"""Stage 04: teach the model to follow instructions about pictures.

Reads   03_pretrain  the model with its trained projector
        02_shard     finetune/: conversations
Writes  04_finetune  model/ merged and complete, adapter/ for LoRA, metrics.jsonl, checkpoints/

    python stages/04_finetune.py finetune=lora
    torchrun --nproc-per-node 4 stages/04_finetune.py finetune=full

Run it again to resume.
"""

from collections.abc import Mapping
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vlm.config import RootConfig
from vlm.pipeline.artifact import write_figures
from vlm.pipeline.stage import Stage, start


def work(cfg: RootConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Train what the strategy names on conversations."""
    from vlm.train.run import train

    write_figures(
        out,
        train(
            cfg.finetune, cfg.seed, base=inputs["03_pretrain"] / "model", split=inputs["02_shard"] / "finetune", out=out
        ),
    )


stage = Stage(
    __file__,
    ("03_pretrain", "02_shard"),
    ("seed", "finetune"),
    work,
    distributed=True,
    may_grow=("finetune.epochs", "finetune.steps"),
)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
