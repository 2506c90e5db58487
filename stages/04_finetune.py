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

import hydra
from omegaconf import DictConfig

from vlm.config import RootConfig, Strategy
from vlm.pipeline.artifact import write_figures
from vlm.pipeline.stage import Stage, start


def work(cfg: RootConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Train what the strategy names on conversations."""
    from vlm.model.card import write_cards
    from vlm.model.verify import check
    from vlm.train.run import train

    base = inputs["03_pretrain"] / "model"
    figures = train(cfg.finetune, cfg.seed, base=base, split=inputs["02_shard"] / "finetune", out=out)
    figures |= check(out, base, quantised=cfg.finetune.strategy is Strategy.qlora)
    write_cards(out, inputs, "finetune", cfg.finetune, figures)
    write_figures(out, figures)


stage = Stage(__file__, ("03_pretrain", "02_shard"), ("seed", "finetune"), work, distributed=True)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
