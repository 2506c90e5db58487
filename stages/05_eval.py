"""Stage 05: ask the held-out questions, score the answers, write the report.

Reads   04_finetune  the model
        02_shard     held-out splits
Writes  05_eval      predictions/<task>.jsonl, metrics.json, report.html

    python stages/05_eval.py

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
    """Answer, score and report."""
    from vlm.eval.run import evaluate

    write_figures(out, evaluate(cfg.eval, cfg.seed, cfg.run, inputs["04_finetune"], inputs["02_shard"], out))


stage = Stage(__file__, ("04_finetune", "02_shard"), ("seed", "eval"), work, uses_gpu=True)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
