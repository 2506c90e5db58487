"""What a micro-batch keeps for its backward pass, in proportion to its tokens and pictures."""

from dataclasses import dataclass

import torch
from transformers import LlavaForConditionalGeneration

from vlm.config import Recompute
from vlm.model.footprint import language_bytes, vision_bytes
from vlm.model.recomputed import keep_inputs_alone
from vlm.train.workload import Workload

TOKENS = 256  # whose bytes are counted; fused attention keeps bytes in proportion to them


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass."""

    layers: dict[Recompute, float]  # of a token in one layer of the language model
    whole: float  # of a token in one layer while it is computed again, or back
    pictures: int  # of one picture in tower and projector
    count: int  # layers
    itemsize: int

    def kept(self, work: Workload, recompute: Recompute) -> int:
        """Return what the largest micro-batch keeps from the forward pass until its backward pass."""
        tokens = work.rows * work.length * self.layers[recompute]
        return round(tokens * self.count) + work.batch_images * self.pictures

    def again(self, work: Workload, recompute: Recompute) -> int:
        """Return what one layer of it keeps while it is computed again."""
        return 0 if recompute is not Recompute.full else round(work.rows * work.length * self.whole)

    def back(self, work: Workload) -> int:
        """Return what the backward pass of one layer needs beside what it kept: about as much once more."""
        return round(work.rows * work.length * self.whole)


def activations_of(
    llava: LlavaForConditionalGeneration, dtype: torch.dtype, *, trains_tower: bool, is_gpu: bool
) -> Activations:
    """Count what a LLaVA on the meta device, as frozen and adapted as it is, keeps; its layers are changed by it."""
    text = llava.config.text_config
    if is_gpu:
        keep_inputs_alone(llava.model.language_model, gates=False)
    whole = language_bytes(llava, 1, TOKENS, dtype) / TOKENS / text.num_hidden_layers
    keep_inputs_alone(llava.model.language_model)
    less = language_bytes(llava, 1, TOKENS, dtype) / TOKENS / text.num_hidden_layers
    return Activations(
        {Recompute.none: whole, Recompute.selective: less, Recompute.full: text.hidden_size * dtype.itemsize},
        whole,
        vision_bytes(llava, 1, dtype, trains_tower=trains_tower),
        text.num_hidden_layers,
        dtype.itemsize,
    )
