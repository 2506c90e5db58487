"""Stage 00: give the language model's tokenizer a token that stands for a picture.

Reads   model.language_model  its tokenizer; with model.base, that LLaVA's
Writes  00_tokenizer          the patched Hugging Face tokenizer

    python stages/00_tokenizer.py model.language_model=Qwen/Qwen1.5-4B-Chat

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
    """Patch the tokenizer and check the new id."""
    from vlm.model.tokenizer import patch

    write_figures(out, patch(cfg.model.language_model, cfg.model.image_token, out, cfg.model.chat_template))


stage = Stage(
    __file__,
    (),
    ("model.language_model", "model.base", "model.image_token", "model.chat_template"),
    work,
)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
