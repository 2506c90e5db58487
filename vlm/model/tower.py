"""Vision towers: which ones fit, and how many tokens a picture becomes."""

from dataclasses import dataclass
from typing import Any

from vlm.config import FeatureSelect
from vlm.errors import Unusable
from vlm.model.hub import fetch, read_config

HAS_CLS = {  # by transformers' model_type: whether the first output is of the whole picture, not of a patch
    "clip_vision_model": True,
    "siglip_vision_model": False,
}
NAFLEX = ("siglip2", "siglip2_vision_model")  # SigLIP 2 of one resolution is published as siglip


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
    """Load the vision part of a tower's config; of an assembled LLaVA too.

    Raises Unusable if the folder or hub id is neither a CLIP nor a SigLIP model.
    """
    return vision_of(read_config(fetch(name, "vision tower"), name, "vision tower"), name)


def tower_shape(name: str, select: FeatureSelect | None) -> TowerShape:
    """Return the shape of a tower; without a strategy, an assembled LLaVA's own, else a CLS output is dropped.

    Raises Unusable if the strategy would drop a real patch.
    """
    whole = read_config(fetch(name, "vision tower"), name, "vision tower")
    return shape_of(whole, name, select)


def shape_of(whole: Any, name: str, select: FeatureSelect | None) -> TowerShape:  # noqa: ANN401 - a transformers config
    """Return the shape of the tower in a config that was read before; see `tower_shape`."""
    config = vision_of(whole, name)
    has_cls = HAS_CLS[config.model_type]
    if whole.model_type == "llava":
        chosen = FeatureSelect(whole.vision_feature_select_strategy)
        if select not in (None, chosen):
            raise Unusable(f"{name} was made with vision_feature_select_strategy={chosen.value}: leave the setting out")
    else:
        chosen = select or (FeatureSelect.default if has_cls else FeatureSelect.full)
    if chosen is FeatureSelect.default and not has_cls:
        raise Unusable(
            f"vision tower: {name} has no CLS output, so vision_feature_select_strategy=default would drop a patch: "
            "use full"
        )
    return TowerShape(config.image_size, config.patch_size, has_cls, chosen)


def check_layer(layer: int, layers: int, name: str) -> None:
    """Check that a tower of `layers` layers has the hidden state `layer`; 0 is its embeddings, -1 the last layer.

    Raises Unusable if it has not.
    """
    if not -layers - 1 <= layer <= layers:
        raise Unusable(f"vision tower: {name} has {layers} layers, so there is no vision_feature_layer={layer}")


def vision_of(whole: Any, name: str) -> Any:  # noqa: ANN401 - a transformers config
    """Return the vision part of a config that was read before; see `tower_config`."""
    if whole.model_type in NAFLEX:
        raise Unusable(
            f"vision tower: {name} is a SigLIP 2 NaFlex tower, whose pictures have no one size, which the LLaVA format "
            "cannot hold: take a SigLIP 2 of one resolution"
        )
    vision = getattr(whole, "vision_config", whole)
    if vision.model_type not in HAS_CLS:
        raise Unusable(f"vision tower: {name} is a {whole.model_type} model; it must be CLIP or SigLIP")
    return vision
