"""Stage 01: tower + projector + language model become one LlavaForConditionalGeneration folder."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedModel,
)

from vlm.config import Geometry, ModelConfig
from vlm.errors import Unusable
from vlm.model.export import save_weights
from vlm.model.hub import load
from vlm.model.tower import TowerShape, tower_config, tower_shape


def assemble(model: ModelConfig, tokenizer_folder: Path, seed: int, out: Path) -> dict[str, Any]:
    """Write the assembled model with its tokenizer and processor into `out`; return the headline figures.

    Raises Unusable if a part cannot be loaded, lacks weights, or does not fit the others.
    """
    shape = tower_shape(model.vision_tower, model.vision_feature_select_strategy)
    dtype = getattr(torch, model.dtype.value)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    image_id = tokenizer.convert_tokens_to_ids(model.image_token)

    language_model = _load_part(AutoModelForCausalLM, model.language_model, "language model", dtype)
    tower = _load_tower(model.vision_tower, dtype)
    assembled = _join(language_model, tower, model, shape, image_id, seed, dtype)
    if image_id >= language_model.config.vocab_size:
        assembled.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    _check_image_tokens(assembled, shape)

    out.mkdir(parents=True, exist_ok=True)
    assembled.config.save_pretrained(out)
    _generation_config(assembled, tokenizer).save_pretrained(out)
    save_weights(assembled, out, dtype)
    _processor(model, shape, tokenizer).save_pretrained(out)
    parts = {
        name: getattr(assembled.model, name) for name in ("vision_tower", "multi_modal_projector", "language_model")
    }
    counts = {f"{name}_parameters": sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    return {"image_token_id": image_id, "image_tokens": shape.image_tokens, **counts}


def _load_part(loader: Any, name: str, what: str, dtype: torch.dtype) -> PreTrainedModel:  # noqa: ANN401
    config = load(AutoConfig.from_pretrained, name, what)
    if config.is_encoder_decoder:
        raise Unusable(f"{what}: {name} is an encoder-decoder; a decoder is needed")
    settings = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    part, info = load(loader.from_pretrained, name, what, settings)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise Unusable(f"{what}: {name} lacks {len(missing)} weights, {missing[0]} first")
    return part


def _load_tower(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load the vision half of a CLIP or SigLIP folder, whether or not it holds the text half too."""
    tower_class = type(AutoModel.from_config(_one_layer(tower_config(name))))
    return _load_part(tower_class, name, "vision tower", dtype)


def _one_layer(config: Any) -> Any:  # noqa: ANN401 - a transformers config
    """Return the config with one narrow layer, to learn its model class at no cost."""
    small = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    return type(config)(**(config.to_dict() | small))


def _join(
    language_model: PreTrainedModel,
    tower: PreTrainedModel,
    model: ModelConfig,
    shape: TowerShape,
    image_id: int,
    seed: int,
    dtype: torch.dtype,
) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=tower.config.to_dict(),
        text_config=language_model.config.to_dict(),
        image_token_index=image_id,
        image_seq_length=shape.image_tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=model.vision_feature_layer,
        vision_feature_select_strategy=shape.select.value,
        tie_word_embeddings=language_model.config.tie_word_embeddings,
        dtype=dtype,
    )
    with torch.device("meta"):
        joined = LlavaForConditionalGeneration(config)
    joined.model.vision_tower = tower
    joined.model.language_model = language_model.get_decoder()
    joined.lm_head = language_model.get_output_embeddings()
    projector = joined.model.multi_modal_projector.to_empty(device="cpu")
    torch.manual_seed(seed)
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    projector.to(dtype)
    return joined.eval()


def _check_image_tokens(assembled: LlavaForConditionalGeneration, shape: TowerShape) -> None:
    """Run one grey picture through tower and projector and count what comes out."""
    weights = assembled.model.multi_modal_projector.linear_1.weight
    picture = torch.zeros(1, 3, shape.image_size, shape.image_size, dtype=weights.dtype)
    with torch.no_grad():
        features = assembled.get_image_features(picture).pooler_output[0]
    if features.shape != (shape.image_tokens, assembled.config.text_config.hidden_size):
        raise Unusable(
            f"a picture became {tuple(features.shape)}, not {shape.image_tokens} tokens: the parts do not fit"
        )


def _generation_config(assembled: LlavaForConditionalGeneration, tokenizer: Any) -> Any:  # noqa: ANN401
    generation = assembled.generation_config
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    return generation


def _processor(model: ModelConfig, shape: TowerShape, tokenizer: Any) -> LlavaProcessor:  # noqa: ANN401
    from transformers import AutoImageProcessor

    source = load(AutoImageProcessor.from_pretrained, model.vision_tower, "picture processor of the tower")
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
        chat_template=tokenizer.chat_template,
    )
