"""Settings of stages 00 and 01."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


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


@dataclass
class ModelConfig:
    """Stages 00 and 01: the parts and how they are joined."""

    language_model: str = MISSING  # folder or hub id (id@revision) of a decoder, with its tokenizer
    vision_tower: str = MISSING  # folder or hub id of a CLIP or SigLIP tower
    base: str | None = None  # folder or hub id of a LLaVA that is whole already: stands for both, nothing is assembled
    image_token: str = "<image>"  # stands for a picture in the tokenizer; its patches take its place
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
