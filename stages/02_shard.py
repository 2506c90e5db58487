"""Stage 02: check every sample of the corpora and write the good ones as WebDataset shards.

Reads   00_tokenizer  to count tokens
        data          corpora for 03 and 04 and what is held out from them
Writes  02_shard      <split>/000000.tar …, index.npy, shards.json, rejects.jsonl; preview.html

    python stages/02_shard.py 'data.finetune.sources=[{path: my.json, images: my_images}]'
    python stages/02_shard.py data.preview=100     how many samples of each source preview.html shows; in a new run

Run it again to resume. On a cluster an array of tasks writes the shards, each its share (part=I/N, shards whose number
leaves I when divided by N), and this script without part= then writes what is missing, the indexes and the manifests.
"""

from collections.abc import Mapping
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vlm.config import RootConfig
from vlm.pipeline.artifact import write_figures
from vlm.pipeline.stage import Stage, start


def work(cfg: RootConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Shard every split that the settings name; where cfg.part says so, only write that share of their shards."""
    from vlm.data.sources import check
    from vlm.model.hub import locate

    splits = (cfg.data.pretrain, cfg.data.finetune)
    for source in (*(one for split in splits for one in (*split.sources, *split.held_out)), *cfg.data.exclude):
        check(source)
    locate(cfg.model.vision_tower, "vision tower")
    from vlm.data.chat import Chat
    from vlm.data.inspect import write_preview
    from vlm.data.shards import Share, build, write_share
    from vlm.model.tower import tower_shape

    shape = tower_shape(cfg.model.vision_tower, cfg.model.vision_feature_select_strategy)
    chat = Chat.load(str(inputs["00_tokenizer"]), cfg.model.image_token, shape.image_tokens)
    if cfg.part:
        write_share(cfg.data, chat, cfg.seed, out, Share(*map(int, cfg.part.split("/"))))
        return
    write_figures(out, build(cfg.data, chat, cfg.seed, out))
    write_preview(out, chat, cfg.data.preview, cfg.seed)


stage = Stage(
    __file__,
    ("00_tokenizer",),
    ("seed", "data", "model.base", "model.vision_tower", "model.vision_feature_select_strategy"),
    work,
    can_be_shared=True,
    when_new="data.preview",
)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings."""
    stage.run(composed)


if __name__ == "__main__":
    start(main)
