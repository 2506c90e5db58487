r"""Stage 02a, of use without training too: have a text model write instruction data from captions and boxes.

Reads   00_tokenizer  to count tokens before they are paid for
        instruct      captioned sources, kinds of data (conf/instruct/), an OpenAI-compatible endpoint
Writes  02a_instruct  corpora/<source>.json, LLaVA JSON for stage 02; requests.jsonl, rejects.jsonl; preview.html

    export OPENAI_API_KEY=…
    python stages/02a_instruct.py instruct.model=NAME instruct.runtime.base_url=https://…/v1 \
        'instruct.sources=[{path: captions_train2017.json, annotations: instances_train2017.json,
                            format: coco_captions, images: train2017}]' instruct.runtime.dry_run=true

Run it again to resume. launch/all.sh leaves it out.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vlm.config import RootConfig
from vlm.pipeline.artifact import write_figures
from vlm.pipeline.stage import Stage, start


def work(cfg: RootConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Ask for every sample and write the good ones."""
    from vlm.instruct.run import generate

    cache = Path(cfg.instruct.runtime.cache or Path(cfg.runs) / "endpoint_cache")
    figures = generate(cfg.instruct, cfg.seed, inputs["00_tokenizer"], cache, out)
    if cfg.instruct.runtime.dry_run:
        sys.exit(0)  # nothing was made, so nothing is published
    write_figures(out, figures)


stage = Stage(__file__, ("00_tokenizer",), ("seed", "instruct"), work)


@hydra.main(version_base="1.3", config_path="../conf", config_name="02a_instruct")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
