"""Settings of stage 02."""

import functools
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING

from vlm.errors import Unusable


class Form(Enum):
    """Text around a sample: `plain` is picture, caption, end; `chat` is the tokenizer's chat template."""

    plain = "plain"
    chat = "chat"


class Stored(Enum):
    """How a picture that is neither JPEG, PNG nor WebP is stored; both lose nothing."""

    png = "png"
    webp = "webp"


class Captions(Enum):
    """Of a picture with several captions: a sample of each, or of one, chosen by the seed."""

    all = "all"
    one = "one"


class Answers(Enum):
    """What a question with choices teaches: the answer in words, or the letter of the right choice."""

    direct = "direct"
    choice = "choice"


@functools.cache  # it is asked for once a row
def _stem(path: str) -> str:
    return Path(path).stem


@dataclass
class SourceConfig:
    """One corpus."""

    path: str = MISSING  # its file; of tars and parquet also the folder they are in
    name: str | None = None  # in reports; null: the file's name
    images: str | None = None  # folder or .zip that image names are relative to; null if the corpus has no images
    format: str = "llava"  # layout of the corpus on disk: a name in FORMATS of vlm/data/sources.py
    annotations: str | None = None  # vqa: the answers; scienceqa: pid_splits.json; coco_captions: instances_*.json
    split: str | None = None  # scienceqa: which list of pid_splits.json is read
    image_names: str = "{:012d}.jpg"  # of COCO's pictures by number; 2014: COCO_train2014_{:012d}.jpg
    prompt: str | None = None  # what captions answer, or what follows a question; null: what LLaVA says there
    prompts: list[str] | None = None  # instead, for captions: one is drawn for each by the seed
    system: str | None = None  # begins each conversation that has no system turn; null: the chat template's own
    captions: Captions = Captions.all  # coco_captions, ai_challenger
    answers: Answers = Answers.direct  # aokvqa
    limit: int | None = None  # read only the first rows
    fraction: float = 1.0  # of those rows, chosen by the seed
    repeat: int = 1  # how often the chosen rows are read

    @property
    def label(self) -> str:
        return self.name or _stem(self.path)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise Unusable(f"data source {self.label}: fraction={self.fraction} is not in (0, 1]")
        if self.prompts is not None and (self.prompt is not None or not self.prompts):
            raise Unusable(f"data source {self.label}: prompts holds at least one, and prompt is null beside it")
        if self.repeat < 1 or (self.limit or 0) < 0:
            raise Unusable(f"data source {self.label}: repeat is at least 1, limit at least 0")


@dataclass
class SplitConfig:
    """The corpora of one training stage and what is held out from them."""

    sources: list[SourceConfig] = field(default_factory=list)
    held_out: list[SourceConfig] = field(default_factory=list)  # corpora kept apart for evaluation
    held_out_fraction: float = 0.0  # and this share of `sources`, chosen by image
    form: Form = Form.chat

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_fraction < 1:
            raise Unusable(f"held_out_fraction={self.held_out_fraction} is not in [0, 1)")


@dataclass
class ShardRuntime:
    """How the sharding is carried out; the shards are the same."""

    workers: int | None = None  # processes that check pictures and write shards; null: one for each core there is

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise Unusable(f"data.runtime.workers={self.workers} is not at least 1")

    @property
    def processes(self) -> int:
        """Workers; where none are named, the cores that SLURM gave the task or that this process may use."""
        return self.workers or int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) or len(os.sched_getaffinity(0))


@dataclass
class DataConfig:
    """Stage 02."""

    pretrain: SplitConfig = field(default_factory=SplitConfig)
    finetune: SplitConfig = field(default_factory=SplitConfig)
    exclude: list[SourceConfig] = field(default_factory=list)  # samples that show a picture of these are left out
    exclude_distance: int | None = 4  # of 64 bits in which near-equal pictures may differ; null: only equal bytes
    limit: int | None = None  # read only the first rows of every source that has no limit of its own: to try a recipe
    drop_duplicates: bool = False  # samples with the same pictures and the same text are counted, or left out
    max_tokens: int = 2048  # of one sample, image tokens included; later turns are cut, longer ones rejected
    max_pixels: int = 178_956_970  # of one picture: larger ones are rejected before they are decoded
    max_image_bytes: int = 268_435_456  # of one picture's file: larger ones are rejected before they are read
    others_stored_as: Stored = (
        Stored.png
    )  # JPEG, PNG and WebP are kept as they are; WebP is smaller and slower to write
    samples_per_shard: int = 1000  # of one tar, as they are read; rejected ones leave it shorter
    max_reject_fraction: float = 0.01  # the stage fails above it
    preview: int = 24  # samples of each source shown in preview.html; 0: no page; not in the key
    runtime: ShardRuntime = field(default_factory=ShardRuntime)

    def __post_init__(self) -> None:
        if self.exclude_distance is not None and not 0 <= self.exclude_distance < 32:
            raise Unusable(f"data.exclude_distance={self.exclude_distance} is not in [0, 32)")
        for split in (self.pretrain, self.finetune):
            for source in (*split.sources, *split.held_out):
                source.limit = self.limit if source.limit is None else source.limit
