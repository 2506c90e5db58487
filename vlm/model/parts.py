"""The models that an assembly begins from, and where each of its weights comes from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from vlm.errors import Unusable
from vlm.model.hub import fetch, load, read_config
from vlm.model.tower import vision_of
from vlm.model.weights import Stored, weights_of, write


@dataclass(frozen=True)
class Part:
    """A source model: its folder, its config, its weights on disk, and its published names' prefixes.

    `prefixes` maps what a published name begins with to what the source's name of it may begin with.
    """

    name: str
    what: str
    folder: Path
    config: Any  # a transformers config
    weights: Mapping[str, Stored]
    model_class: type[PreTrainedModel]
    prefixes: Mapping[str, tuple[str, ...]]

    def source_of(self, published: str) -> Stored | None:
        """Return the tensor that becomes the weight `published` of the LLaVA; None if there is none."""
        for prefix, theirs in self.prefixes.items():
            if published.startswith(prefix):
                rest = published.removeprefix(prefix)
                return next((self.weights[one + rest] for one in theirs if one + rest in self.weights), None)
        return None

    def load(self, dtype: torch.dtype, scratch: Path) -> PreTrainedModel:
        """Load the bare model as transformers does, in `dtype`.

        transformers maps files of that type into memory, but would hold others twice over: those are converted
        into a file under `scratch` first, which is gone again on return.
        """
        settings = {"dtype": dtype, "config": self.config}
        if all(stored.dtype is dtype and stored.mapped is None for stored in self.weights.values()):
            return load(self.model_class.from_pretrained, str(self.folder), self.what, settings).eval()
        used = dict(self._used())
        shapes = {name: torch.Size(stored.shape) for name, stored in used.items()}
        with TemporaryDirectory(dir=scratch) as converted:
            self.config.save_pretrained(converted)
            write(Path(converted) / "model.safetensors", shapes, dtype, lambda name: used[name].read(dtype))
            return load(self.model_class.from_pretrained, converted, self.what, settings).eval()

    def _used(self) -> Iterator[tuple[str, Stored]]:
        """Leave out what belongs to the text half of a whole CLIP."""
        theirs = tuple(prefix for prefixes in self.prefixes.values() for prefix in prefixes)
        return ((name, stored) for name, stored in self.weights.items() if name.startswith(theirs))


def language_model(name: str, *, allow_pickle: bool) -> Part:
    """Find a decoder.

    Raises Unusable if it is no decoder, or its files are damaged or missing.
    """
    what = "language model"
    folder = fetch(name, what, weights=True, allow_pickle=allow_pickle)
    config = read_config(folder, name, what)
    if config.is_encoder_decoder:
        raise Unusable(f"{what}: {name} is an encoder-decoder; a decoder is needed")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unusable(f"{what}: {name} is a {config.model_type} model, not a decoder that writes text")
    weights = weights_of(folder, f"{what}: {name}", allow_pickle=allow_pickle)
    with torch.device("meta"):
        bare = load(lambda _, **settings: AutoModelForCausalLM.from_config(config, **settings), name, what)
    body = bare.base_model_prefix
    heads = [key for key, module in bare.named_modules() if module is bare.get_output_embeddings()]
    prefixes = {"language_model.model.": (f"{body}.", ""), "language_model.lm_head.": tuple(f"{h}." for h in heads)}
    return Part(name, what, folder, config, weights, type(bare), prefixes)


def vision_tower(name: str, *, allow_pickle: bool) -> Part:
    """Find the vision half of a CLIP or SigLIP, whether or not its folder holds the text half too.

    Raises Unusable if it is neither, or its files are damaged or missing.
    """
    what = "vision tower"
    folder = fetch(name, what, weights=True, allow_pickle=allow_pickle)
    vision = vision_of(read_config(folder, name, what), name)
    weights = weights_of(folder, f"{what}: {name}", allow_pickle=allow_pickle)
    with torch.device("meta"):
        model_class = type(AutoModel.from_config(vision))
    prefixes = {"vision_tower.vision_model.": ("vision_model.", "")}
    return Part(name, what, folder, vision, weights, model_class, prefixes)


def whole_llava(name: str, *, allow_pickle: bool) -> Part:
    """Find a LLaVA that is assembled already, written by any version of transformers.

    Raises Unusable if it is another kind of model, or its files are damaged or missing.
    """
    what = "model.base"
    folder = fetch(name, what, weights=True, allow_pickle=allow_pickle)
    config = read_config(folder, name, what)
    if config.model_type != "llava":
        raise Unusable(f"{what}: {name} is a {config.model_type} model, not a LlavaForConditionalGeneration")
    if not isinstance(config.vision_feature_layer, int):
        raise Unusable(f"{what}: {name} joins several tower layers, {config.vision_feature_layer}: one is supported")
    weights = weights_of(folder, f"{what}: {name}", allow_pickle=allow_pickle)
    tower = "vision_tower.vision_model."
    prefixes = {
        tower: (tower, "vision_tower.", f"model.{tower}", "model.vision_tower."),
        "multi_modal_projector.": ("multi_modal_projector.", "model.multi_modal_projector."),
        "language_model.model.": ("language_model.model.", "model.language_model."),
        "language_model.lm_head.": ("language_model.lm_head.", "lm_head."),
    }
    return Part(name, what, folder, config, weights, LlavaForConditionalGeneration, prefixes)


def sources_of(names: list[str], shapes: Mapping[str, Tensor], parts: list[Part], rows: int) -> dict[str, Stored]:
    """Find the source of each published weight; `rows` are the embedding rows that the sources have.

    Raises Unusable if one is missing or has another shape than its config says.
    """
    found: dict[str, Stored] = {}
    for part in parts:
        mine = [name for name in names if name.startswith(tuple(part.prefixes))]
        lacking = [name for name in mine if part.source_of(name) is None]
        if lacking:
            raise Unusable(f"{part.what}: {part.name} lacks {len(lacking)} weights, {lacking[0]} first")
        for name in mine:
            stored = part.source_of(name)
            shape = tuple(shapes[name].shape)
            wanted = (rows, *shape[1:]) if is_by_word(name) else shape
            if stored.shape != wanted:
                raise Unusable(f"{part.what}: {part.name} holds {name} as {stored.shape}, but its config says {wanted}")
            found[name] = stored
    return found


def is_by_word(published: str) -> bool:
    """Whether a weight has a row for each word of the vocabulary."""
    return published in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
