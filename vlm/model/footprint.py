"""What a model would keep in memory while it trains, counted on the meta device: no weight is read, no byte is used.

The forward pass runs for real on tensors without storage, and autograd is asked what it saves. So the count holds for
any language model, any adapters and any part that trains, without a formula for each.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaConfig, LlavaForConditionalGeneration

from vlm.config import ModelConfig
from vlm.errors import Unusable
from vlm.model.assemble import joined_config
from vlm.model.forward import tower_features
from vlm.model.hub import fetch, read_config
from vlm.model.tower import shape_of, vision_of

COUNTED = "counted"  # name of the attention below


def outline_of(folder: Path) -> LlavaForConditionalGeneration:
    """Return an assembled model on the meta device."""
    return _on_meta(LlavaConfig.from_pretrained(folder, local_files_only=True))


def outline(model: ModelConfig) -> LlavaForConditionalGeneration:
    """Return, on the meta device, the model that stage 01 would assemble; only configs are read.

    Raises Unusable if a part's config cannot be read.
    """
    if model.base is not None:
        return _on_meta(read_config(fetch(model.base, "model.base"), model.base, "model.base"))
    name, what = model.vision_tower, "vision tower"
    whole = read_config(fetch(name, what), name, what)
    language = read_config(fetch(model.language_model, "language model"), model.language_model, "language model")
    shape = shape_of(whole, name, model.vision_feature_select_strategy)
    return _on_meta(joined_config(vision_of(whole, name), language, model, shape))


def language_bytes(llava: LlavaForConditionalGeneration, rows: int, length: int, dtype: torch.dtype) -> int:
    """Return the bytes that the language model saves for its backward pass over a batch of (rows, length) tokens."""
    model = llava.model.language_model
    with torch.device("meta"):
        words = torch.empty(rows, length, llava.config.text_config.hidden_size, dtype=dtype, requires_grad=True)
        positions = torch.empty(rows, length, dtype=torch.int64)
        return _saved(
            lambda: (
                model(
                    inputs_embeds=words * 1, position_ids=positions, attention_mask=None, use_cache=False
                ).last_hidden_state
            ),
            llava,
        )


def vision_bytes(llava: LlavaForConditionalGeneration, images: int, dtype: torch.dtype, *, trains_tower: bool) -> int:
    """Return the bytes that tower and projector save for their backward pass over `images` pictures."""
    edge = llava.config.vision_config.image_size
    with torch.device("meta"):
        pixels = torch.empty(max(images, 1), 3, edge, edge, dtype=dtype)

        def run() -> Tensor:
            with torch.set_grad_enabled(trains_tower):
                features = tower_features(llava, pixels)
            return llava.model.multi_modal_projector(features)

        return _saved(run, llava)


def _on_meta(config: LlavaConfig) -> LlavaForConditionalGeneration:
    AttentionInterface.register(COUNTED, _attention)
    config._attn_implementation = COUNTED
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    if not isinstance(llava, LlavaForConditionalGeneration):
        raise Unusable("this is no LlavaForConditionalGeneration")
    return llava.train()


def _saved(run: Callable[[], Tensor], model: nn.Module) -> int:
    """Return the bytes of the storages that autograd keeps for `run`, each once, weights left out."""
    weights = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # by storage; held, so that no storage takes the place of another

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _Fused(torch.autograd.Function):
    """Fused attention as it looks to memory: it saves its inputs, its output and a float32 number for each query."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN001 - autograd's context
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple:
    return _Fused.apply(query, key, value), None
