"""Vision towers: which ones fit, and how many tokens a picture becomes."""

from dataclasses import dataclass
from typing import Any

from vlm.config import FeatureSelect
from vlm.errors import Unusable

HAS_CLS = {"clip_vision_model": True, "siglip_vision_model": False}  # by transformers' model_type


@dataclass(frozen=True)
class TowerShape:
    """What the language model's side needs to know of a tower."""

    image_size: int  # pixels of each edge
    patch_size: int
    has_cls: bool
    select: FeatureSelect

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture."""
        patches = (self.image_size // self.patch_size) ** 2
        return patches + (self.has_cls and self.select is FeatureSelect.full)


def tower_config(name: str) -> Any:  # noqa: ANN401 - a transformers config
    """Load the vision part of a tower's config.

    Raises Unusable if the folder or hub id is neither a CLIP nor a SigLIP model.
    """
    from transformers import AutoConfig

    from vlm.model.hub import load

    config = load(AutoConfig.from_pretrained, name, "vision tower")
    vision = getattr(config, "vision_config", config)
    if vision.model_type not in HAS_CLS:
        raise Unusable(f"vision tower: {name} is a {config.model_type} model; it must be CLIP or SigLIP")
    return vision


def tower_shape(name: str, select: FeatureSelect | None) -> TowerShape:
    """Return the shape of a tower; without a strategy, a CLS output is dropped if there is one.

    Raises Unusable if the strategy would drop a real patch.
    """
    config = tower_config(name)
    has_cls = HAS_CLS[config.model_type]
    chosen = select or (FeatureSelect.default if has_cls else FeatureSelect.full)
    if chosen is FeatureSelect.default and not has_cls:
        raise Unusable(
            f"vision tower: {name} has no CLS output, so vision_feature_select_strategy=default would drop a patch: "
            "use full"
        )
    return TowerShape(config.image_size, config.patch_size, has_cls, chosen)
