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

import hydra
from omegaconf import DictConfig

from vlm.config import RootConfig
from vlm.pipeline.artifact import write_figures
from vlm.pipeline.stage import Stage, start


def work(cfg: RootConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Train the projector on captions."""
    from vlm.train.run import train

    write_figures(
        out,
        train(
            cfg.pretrain, cfg.seed, base=inputs["01_assemble"] / "model", split=inputs["02_shard"] / "pretrain", out=out
        ),
    )


stage = Stage(
    __file__,
    ("01_assemble", "02_shard"),
    ("seed", "pretrain"),
    work,
    distributed=True,
    may_grow=("pretrain.epochs", "pretrain.steps"),
)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
