"""Stage 01: join tower, projector and language model into one LLaVA folder, and check that it is what its parts are.

Reads   00_tokenizer        the patched tokenizer
        model.vision_tower, model.language_model; or model.base, a LLaVA that is joined already
Writes  01_assemble/model/  config, weights, tokenizer, processor

    python stages/01_assemble.py model=demo
    python stages/01_assemble.py model=llava_1_5_7b

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
    """Assemble the model, with a projector drawn from the seed."""
    from vlm.model.hub import locate

    locate(cfg.model.language_model, "language model")
    locate(cfg.model.vision_tower, "vision tower")
    from vlm.model.build import build

    write_figures(out, build(cfg.model, inputs["00_tokenizer"], cfg.seed, out / "model"))


stage = Stage(__file__, ("00_tokenizer",), ("seed", "model"), work)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
