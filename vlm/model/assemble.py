"""Stage 01: tower + projector + language model become one LlavaForConditionalGeneration folder.

Weights go from file to file one by one, so the memory in use is that of the largest tensor, not of the model.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from vlm.config import Geometry, ModelConfig
from vlm.errors import Unusable
from vlm.model import parts, projector
from vlm.model.chat_template import for_parts
from vlm.model.export import PARTS, files_of, published, write_index
from vlm.model.hub import load, revision_of
from vlm.model.parts import Part
from vlm.model.tokenizer import forget_loading
from vlm.model.tower import TowerShape, check_layer, shape_of
from vlm.model.weights import Stored, write

ROWS_MULTIPLE = 64  # embeddings that must grow grow to a multiple of it, which matrix units like


@dataclass(frozen=True)
class Plan:
    """What is to be written, and from where; all that can be wrong with the sources was checked."""

    config: LlavaConfig
    shape: TowerShape
    sources: list[Part]  # tower and language model, or the one LLaVA that both come from
    shapes: Mapping[str, Tensor]  # every weight by published name, on the meta device
    copies: Mapping[str, Stored]  # where those that are copied come from
    rows: int  # of the sources' embeddings
    tokenizer: Any

    @property
    def image_id(self) -> int:
        return self.config.image_token_id


def assemble(model: ModelConfig, tokenizer_folder: Path, seed: int, out: Path) -> dict[str, Any]:
    """Write the assembled model with its tokenizer and processor into `out`; return the headline figures.

    Raises Unusable, before anything is written, if a part cannot be loaded or does not fit the others.
    """
    return write_model(plan(model, tokenizer_folder), model, seed, out)


def plan(model: ModelConfig, tokenizer_folder: Path) -> Plan:
    """Find and check everything that an assembly needs; no weight is read.

    Raises Unusable if a part is missing, damaged, of the wrong kind, or does not fit the others.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    forget_loading(tokenizer)
    if model.base is not None:
        whole = parts.whole_llava(model.base, allow_pickle=model.allow_pickle)
        sources, config = [whole], copy.deepcopy(whole.config)
        shape = shape_of(config, model.base, model.vision_feature_select_strategy)
    else:
        tower = parts.vision_tower(model.vision_tower, allow_pickle=model.allow_pickle)
        language = parts.language_model(model.language_model, allow_pickle=model.allow_pickle)
        shape = shape_of(tower.config, model.vision_tower, model.vision_feature_select_strategy)
        sources, config = [tower, language], joined_config(tower.config, language.config, model, shape)
    check_layer(config.vision_feature_layer, config.vision_config.num_hidden_layers, sources[0].name)
    rows = config.text_config.vocab_size
    config = _with_words(config, tokenizer, model, sources[-1])
    for one in (config, config.text_config, config.vision_config):
        one.dtype = getattr(torch, model.dtype.value)
    with torch.device("meta"):
        shapes = published(LlavaForConditionalGeneration(config))
    copies = parts.sources_of(list(shapes), shapes, sources, rows)
    return Plan(config, shape, sources, shapes, copies, rows, tokenizer)


def write_model(ready: Plan, model: ModelConfig, seed: int, out: Path) -> dict[str, Any]:
    """Carry out a plan; return the headline figures."""
    out.mkdir(parents=True, exist_ok=True)
    ready.config.architectures = [LlavaForConditionalGeneration.__name__]
    ready.config.save_pretrained(out)
    _generation_config(ready).save_pretrained(out)
    _processor(ready, model).save_pretrained(out)
    drawn = {f"multi_modal_projector.{name}": new for name, new in projector.first_weights(ready.config, seed).items()}
    _write_weights(ready, drawn, out)
    sizes = {name: weight.numel() for name, weight in ready.shapes.items()}
    counts = {f"{part}_parameters": sum(n for name, n in sizes.items() if name.startswith(part)) for part in PARTS}
    revisions = {f"{part.what} revision": revision_of(part.folder) for part in ready.sources}
    figures = {"image_token_id": ready.image_id, "image_tokens": ready.shape.image_tokens, **counts}
    if model.base is None:
        figures |= {"projector": model.projector.value, "projector_seed": seed}
    return figures | {name.replace(" ", "_"): commit for name, commit in revisions.items() if commit}


def joined_config(tower: Any, language: Any, model: ModelConfig, shape: TowerShape) -> LlavaConfig:  # noqa: ANN401
    """Return the config of the LLaVA that a tower and a decoder with these transformers configs become."""
    return LlavaConfig(
        vision_config=_without_path(tower),
        text_config=_without_path(language),
        image_token_index=0,  # `_with_words` knows it
        image_seq_length=shape.image_tokens,
        projector_hidden_act=projector.ACTIVATIONS[model.projector],
        vision_feature_layer=model.vision_feature_layer,
        vision_feature_select_strategy=shape.select.value,
        tie_word_embeddings=language.tie_word_embeddings,
    )


def _without_path(config: Any) -> dict[str, Any]:  # noqa: ANN401 - a transformers config
    """Return a config's values but for where it lay on this machine."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def _with_words(config: LlavaConfig, tokenizer: Any, model: ModelConfig, language: Part) -> LlavaConfig:  # noqa: ANN401
    """Set the picture's id, and more embedding rows if it lies beyond them.

    Raises Unusable if another id lies beyond them, or a LLaVA was trained with another picture token.
    """
    ids = dict(tokenizer.get_vocab())
    image_id = ids.pop(model.image_token)
    rows = config.text_config.vocab_size
    token, largest = max(ids.items(), key=lambda item: item[1])
    if largest >= rows:
        raise Unusable(
            f"{language.what}: {language.name} has {rows} embedding rows, but its tokenizer writes ids up to {largest} "
            f"({token}): take the tokenizer that belongs to it"
        )
    if model.base is not None and config.image_token_id != image_id:
        theirs = tokenizer.convert_ids_to_tokens(config.image_token_id)
        raise Unusable(f"model.base: {model.base} takes {theirs} for a picture: say model.image_token={theirs!r}")
    config.image_token_id = image_id
    if image_id >= rows:
        config.text_config.vocab_size = -(-(image_id + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    return config


def _write_weights(ready: Plan, drawn: Mapping[str, Tensor], out: Path) -> None:
    dtype = ready.config.dtype

    def weight(name: str) -> Tensor:
        if name not in ready.copies:
            return drawn[name]
        return grown(ready.copies[name].read(dtype), ready.shapes[name].shape[0])

    weight_map: dict[str, str] = {}
    for part in PARTS:
        names = [name for name in ready.shapes if name.startswith(part + ".")]
        for number, group in enumerate(files_of(names, ready.shapes, dtype), start=1):
            file = f"model-{part}-{number:05d}.safetensors"
            write(out / file, {name: ready.shapes[name].shape for name in group}, dtype, weight)
            weight_map |= dict.fromkeys(group, file)
            print(f"wrote {file}: {len(weight_map)} of {len(ready.shapes)} weights", flush=True)
    write_index(out, weight_map)


def grown(weight: Tensor, rows: int) -> Tensor:
    """Return a weight with rows added up to `rows`, each the mean of the old ones."""
    missing = rows - weight.shape[0] if weight.ndim else 0
    if missing <= 0:
        return weight
    mean = weight.mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(missing, *weight.shape[1:])])


def _generation_config(ready: Plan) -> GenerationConfig:
    """Return greedy defaults that stop wherever the language model was taught to stop."""
    path = ready.sources[-1].folder / "generation_config.json"
    known = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    known = known if isinstance(known, list) else [known]
    ends = list(dict.fromkeys(end for end in (ready.tokenizer.eos_token_id, *known) if end is not None))
    return GenerationConfig(
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=ready.tokenizer.pad_token_id,
        bos_token_id=ready.tokenizer.bos_token_id,
    )


def _processor(ready: Plan, model: ModelConfig) -> LlavaProcessor:
    shape, tokenizer = ready.shape, ready.tokenizer
    tower = ready.sources[0]
    source = load(AutoImageProcessor.from_pretrained, str(tower.folder), "picture processor of the tower")
    edge = {"height": shape.image_size, "width": shape.image_size}
    pictures = LlavaImageProcessorPil(
        size={"shortest_edge": shape.image_size},
        crop_size=edge,
        image_mean=list(source.image_mean),
        image_std=list(source.image_std),
        do_pad=model.geometry is Geometry.pad,
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=shape.patch_size,
        vision_feature_select_strategy=shape.select.value,
        num_additional_image_tokens=int(shape.has_cls),
        image_token=model.image_token,
        chat_template=for_parts(tokenizer, model.image_token),
    )
