"""Every setting of the pipeline: its name, its type, its default, and what must hold between settings.

The values live in conf/; here is what they may be. One root config serves all six stages, so that one
preset describes a whole run. Settings under a node named `runtime` or `deepspeed` say how the work is
done, not what comes out, so they do not count in an artifact's key.
"""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from vlm.errors import Unusable

UNKEYED_NODES = frozenset({"runtime", "deepspeed"})


class Geometry(Enum):
    """How a picture becomes square: `pad` adds a border of the mean colour, `crop` keeps the centre."""

    pad = "pad"
    crop = "crop"


class FeatureSelect(Enum):
    """Which tower outputs become image tokens: `default` drops the first (CLS), `full` keeps all."""

    default = "default"
    full = "full"


class Dtype(Enum):
    """Type of stored or trained weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class ProjectorKind(Enum):
    """From tower to language model: `mlp2x_gelu` is LLaVA 1.5's, `linear` is one layer, as in LLaVA v1."""

    mlp2x_gelu = "mlp2x_gelu"
    linear = "linear"


class ChatTemplate(Enum):
    """Templates for language models without one of their own: vlm/model/templates/."""

    chatml = "chatml"
    vicuna = "vicuna"
    plain = "plain"


class Form(Enum):
    """Text around a sample: `plain` is picture, caption, end; `chat` is the tokenizer's chat template."""

    plain = "plain"
    chat = "chat"


class SourceFormat(Enum):
    """Layout of a corpus on disk: one reader each in vlm/data/sources.py, which says whose layout it is."""

    llava = "llava"
    coco_captions = "coco_captions"
    vqa = "vqa"
    aokvqa = "aokvqa"
    scienceqa = "scienceqa"
    pope = "pope"
    ai_challenger = "ai_challenger"
    tars = "tars"
    parquet = "parquet"


class Captions(Enum):
    """Of a picture with several captions: a sample of each, or of one, chosen by the seed."""

    all = "all"
    one = "one"


class Answers(Enum):
    """What a question with choices teaches: the answer in words, or the letter of the right choice."""

    direct = "direct"
    choice = "choice"


class Strategy(Enum):
    """What trains: see vlm/train/strategy.py."""

    projector = "projector"
    full = "full"
    freeze_vision = "freeze_vision"
    lora = "lora"


class Schedule(Enum):
    """Learning rate after the warm-up: down to zero along a cosine or a line, or constant."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Scorer(Enum):
    """How an answer is compared with its reference."""

    exact_match = "exact_match"


@dataclass
class ModelConfig:
    """Stages 00 and 01: the parts and how they are joined."""

    language_model: str = MISSING  # folder or hub id (id@revision) of a decoder, with its tokenizer
    vision_tower: str = MISSING  # folder or hub id of a CLIP or SigLIP tower
    base: str | None = None  # folder or hub id of a LLaVA that is whole already: stands for both, nothing is assembled
    image_token: str = "<image>"
    chat_template: ChatTemplate | None = None  # only for a tokenizer that has none
    projector: ProjectorKind = ProjectorKind.mlp2x_gelu
    vision_feature_layer: int = -2  # hidden state of the tower; -1 is the last. LLaVA's choice for CLIP and SigLIP
    vision_feature_select_strategy: FeatureSelect | None = None  # null: `default` if the tower has a CLS, else `full`
    geometry: Geometry = Geometry.pad
    dtype: Dtype = Dtype.bfloat16  # of the stored weights
    allow_pickle: bool = False  # read pytorch_model.bin, as tensors alone, where there are no safetensors

    def __post_init__(self) -> None:
        if self.base is not None:
            self.language_model = self.vision_tower = self.base


@dataclass
class SourceConfig:
    """One corpus."""

    path: str = MISSING  # its file; of tars and parquet also the folder they are in
    name: str | None = None  # in reports; null: the file's name
    images: str | None = None  # folder or .zip that image names are relative to; null if the corpus has no images
    format: SourceFormat = SourceFormat.llava
    annotations: str | None = None  # vqa: the answers; scienceqa: pid_splits.json; coco_captions: instances_*.json
    split: str | None = None  # scienceqa: which list of pid_splits.json is read
    image_names: str = "{:012d}.jpg"  # of COCO's pictures by number; 2014: COCO_train2014_{:012d}.jpg
    prompt: str | None = None  # what captions answer, or what follows a question; null: what LLaVA says there
    captions: Captions = Captions.all  # coco_captions, ai_challenger
    answers: Answers = Answers.direct  # aokvqa
    limit: int | None = None  # read only the first rows
    fraction: float = 1.0  # of those rows, chosen by the seed
    repeat: int = 1  # how often the chosen rows are read

    @property
    def label(self) -> str:
        return self.name or Path(self.path).stem

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise Unusable(f"data source {self.label}: fraction={self.fraction} is not in (0, 1]")
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
    workers: int = 2  # processes that check pictures and write shards
    preview: int = 24  # samples of each source shown in preview.html; 0: no page


@dataclass
class DataConfig:
    """Stage 02."""

    pretrain: SplitConfig = field(default_factory=SplitConfig)
    finetune: SplitConfig = field(default_factory=SplitConfig)
    exclude: list[SourceConfig] = field(default_factory=list)  # samples that show a picture of these are left out
    exclude_distance: int | None = 4  # of 64 bits in which near-equal pictures may differ; null: only equal bytes
    drop_duplicates: bool = False  # samples with the same pictures and the same text are counted, or left out
    max_tokens: int = 2048  # of one sample, image tokens included; later turns are cut, longer ones rejected
    max_pixels: int = 178_956_970  # of one picture: larger ones are rejected before they are decoded
    max_image_bytes: int = 268_435_456  # of one picture's file: larger ones are rejected before they are read
    samples_per_shard: int = 1000
    max_reject_fraction: float = 0.01  # the stage fails above it
    runtime: ShardRuntime = field(default_factory=ShardRuntime)

    def __post_init__(self) -> None:
        if self.exclude_distance is not None and not 0 <= self.exclude_distance < 32:
            raise Unusable(f"data.exclude_distance={self.exclude_distance} is not in [0, 32)")


@dataclass
class LearningRates:
    """Peak learning rate of each part; only those of the parts that train are used."""

    projector: float = 1.0e-3
    language_model: float = 2.0e-5
    vision_tower: float = 2.0e-6
    lora: float = 2.0e-4


@dataclass
class LoraConfig:
    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.05
    targets: list[str] = field(  # names of linear layers inside the language model
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass
class TrainRuntime:
    """How the training is carried out; the result is the same up to floating-point order."""

    rows_at_once: int = 4  # packs that one rank computes at once
    workers: int = 1  # loader processes of one rank
    log_every: int = 10  # steps
    save_every: int = 500  # steps
    keep: int = 2  # checkpoints


@dataclass
class TrainConfig:
    """Stages 03 and 04: one training."""

    strategy: Strategy = MISSING
    epochs: float = 1.0
    steps: int | None = None  # instead of epochs
    samples_per_step: int = 128  # the global batch, over all ranks
    pack_tokens: int = 2048  # a pack holds whole samples up to this many tokens
    pack_images: int = 64  # and up to this many pictures
    packing: bool = True  # false: one sample a row
    lr: LearningRates = field(default_factory=LearningRates)
    schedule: Schedule = Schedule.cosine
    warmup_ratio: float = 0.03  # of all steps
    weight_decay: float = 0.0  # never on norms and biases
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: float = 1.0
    dtype: Dtype | None = None  # of the forward pass; null: bfloat16 on a GPU, float32 on a CPU
    lora: LoraConfig = field(default_factory=LoraConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's own keys, handed over as they are
    runtime: TrainRuntime = field(default_factory=TrainRuntime)

    def __post_init__(self) -> None:
        if self.samples_per_step < 1 or self.pack_tokens < 1:
            raise Unusable("samples_per_step and pack_tokens are at least 1")
        if len(self.betas) != 2:
            raise Unusable(f"betas={self.betas} are not two numbers")
        if not 0 <= self.warmup_ratio < 1:
            raise Unusable(f"warmup_ratio={self.warmup_ratio} is not in [0, 1)")


@dataclass
class TaskConfig:
    """One evaluation: the last answer of each held-out conversation is asked for and compared."""

    split: str = "finetune_held_out"
    scorer: Scorer = Scorer.exact_match
    max_new_tokens: int = 32
    limit: int | None = None  # ask only the first questions
    shuffled: bool = True  # ask again with the pictures of other samples: what the model knows blind


@dataclass
class EvalRuntime:
    batch_size: int = 64


@dataclass
class EvalConfig:
    """Stage 05."""

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    gallery: int = 120  # answers shown in the report
    runtime: EvalRuntime = field(default_factory=EvalRuntime)


@dataclass
class RootConfig:
    """The root config that all stages share (conf/config.yaml)."""

    run: str = MISSING  # names runs/<run>/
    runs: str = "runs"  # folder of all runs
    seed: int = 0
    cluster: Any = None  # null: work in this process
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    finetune: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


ConfigStore.instance().store(name="schema", node=RootConfig)
