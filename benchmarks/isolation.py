"""How far the gradient of a pack is from the sum of its samples' own gradients, as transformers alone computes them."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from vlm.config import TrainConfig
from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.data.loader import Batch, Steps
from vlm.data.pixels import Preprocessing, normalise
from vlm.model.forward import IGNORED, PackedLoss
from vlm.train.planning import plan_of


def gradients_apart(
    model: Path, split: Path, cfg: TrainConfig, family: str, attention: str, *, one_run: bool = False
) -> float:
    """Return the largest difference of a weight's gradients over the first step, as a share of their norm.

    With `one_run` the positions of a pack do not begin anew in each sample, so that its samples see each other.
    """
    llava, how, shards = random_llava(model, family, attention), Preprocessing.load(model), Split(split)
    plan = plan_of(cfg, 0, shards)
    steps = Steps(shards, plan, Chat.of_model(model), how, rank=0, ranks=1, rows_at_once=1)
    packs = plan.packs(0, 1)
    expected = gradients(llava, (alone(llava, steps.batch([[one]]), how) for pack in packs for one in pack))
    found = gradients(llava, (packed(llava, steps.batch([pack]), how, one_run) for pack in packs))
    return max(float((found[name] - one).norm() / one.norm()) for name, one in expected.items())


def random_llava(model: Path, family: str, attention: str) -> LlavaForConditionalGeneration:
    """Return a model of the folder's sizes with another family of language model; its tower is frozen."""
    torch.manual_seed(3)
    config = LlavaConfig.from_pretrained(model)
    text = config.text_config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config.text_config = AutoConfig.for_model(
        family, **{name: text[name] for name in kept}, num_key_value_heads=2, head_dim=8, initializer_range=0.3
    )
    llava = LlavaForConditionalGeneration(config).eval()
    llava.set_attn_implementation(attention)
    llava.model.vision_tower.requires_grad_(False)
    return llava


def gradients(llava: LlavaForConditionalGeneration, losses: Iterator[Tensor]) -> dict[str, Tensor]:
    """Return the gradients of the sum of losses, by the names of the weights that have one."""
    llava.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: weight.grad.clone() for name, weight in llava.named_parameters() if weight.grad is not None}


def packed(llava: LlavaForConditionalGeneration, batch: Batch, how: Preprocessing, one_run: bool) -> Tensor:
    """Return the summed loss of a pack, nats."""
    places = torch.arange(batch.position_ids.shape[1])[None] if one_run else batch.position_ids
    return PackedLoss(llava)(batch.input_ids, batch.labels, places, normalise(batch.pixel_values, how, torch.float32))


def alone(llava: LlavaForConditionalGeneration, batch: Batch, how: Preprocessing) -> Tensor:
    """Return the summed loss of one sample as transformers computes it, nats."""
    pixels = normalise(batch.pixel_values, how, torch.float32) if len(batch.pixel_values) else None
    seen = llava(
        input_ids=batch.input_ids,
        attention_mask=torch.ones_like(batch.input_ids),
        pixel_values=pixels,
        labels=batch.labels,
    )
    return seen.loss * (batch.labels != IGNORED).sum()
