"""A model on the meta device, as its training will have it: what it counts, computes and keeps, before a weight is read.

FLOPs of products with weights are those of vlm/train/flops.py: 2N forward, 4N where gradients only pass through, 6N
where N trains. Attention adds 2·2·width·length/2 a token forward (causal; the tower's is not) and twice that back
(Narayanan et al., 2021); what is recomputed adds its forward pass once more.
"""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm.config import Recompute, Strategy, TrainConfig
from vlm.model.forward import layers_used
from vlm.train import strategy
from vlm.train.activations import Activations, activations_of
from vlm.train.flops import Cost
from vlm.train.memory import Sizes
from vlm.train.workload import Workload

NF4_BYTES = 0.5 + 0.127 / 8  # of a weight: four bits, and its share of the doubly quantised scales (QLoRA, 2023)


@dataclass(frozen=True)
class Drawn:
    """A LLaVA on the meta device, frozen and adapted as the settings say."""

    cfg: TrainConfig
    llava: LlavaForConditionalGeneration
    whole: nn.Module  # with its adapters
    trainees: list[strategy.Trainee]
    each: Activations

    @classmethod
    def of(cls, cfg: TrainConfig, llava: LlavaForConditionalGeneration, dtype: torch.dtype, *, is_gpu: bool) -> "Drawn":
        """Freeze and adapt `llava`, which is on the meta device, for a forward pass in `dtype`."""
        with (
            torch.device("meta"),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # adapters are announced when they are made
            whole, trainees = strategy.choose(llava.to(dtype), cfg.strategy, cfg.train, cfg.lora, lambda: None)
            whole.to(dtype)
            trains_tower = any(trainee.part == "vision_tower" for trainee in trainees)
            each = activations_of(llava, dtype, trains_tower=trains_tower, is_gpu=is_gpu)
        return cls(cfg, llava, whole, trainees, each)

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        vision = self.llava.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    @property
    def trainable(self) -> dict[str, int]:
        """Parameters that train, by part."""
        return by_part((trainee.name, trainee.weight.numel()) for trainee in self.trainees)

    def flops(self, work: Workload, recompute: Recompute) -> dict[str, float]:
        """Return the FLOPs of a whole training by part."""
        text, vision = self.llava.config.text_config, self.llava.config.vision_config
        cost = Cost.of(self.whole, self.patches)
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        attention = 2.0 * width * text.num_attention_heads * work.squares * text.num_hidden_layers
        tower_attention = 4.0 * vision.hidden_size * (self.patches + 1) ** 2 * layers_used(self.llava) * work.images
        products = sum(w.numel() for n, w in self.whole.named_parameters() if w.ndim == 2 and _is_in_layers(n))
        again = 2.0 * products * work.tokens + attention if recompute is Recompute.full else 0.0
        return {
            "language model": float(cost.token * work.tokens),
            "output layer": float(cost.target * work.targets),
            "tower and projector": float(cost.patch * self.patches * work.images),
            "attention": 3 * attention + tower_attention,
            "recomputed": again,
        }

    def sizes(self, work: Workload, recompute: Recompute, ranks: int, *, is_gpu: bool) -> Sizes:
        """Return what the memory of one rank follows from."""
        edge, itemsize = self.llava.config.vision_config.image_size, self.each.itemsize
        runtime = self.cfg.runtime
        if is_gpu and runtime.compile and recompute is Recompute.none:
            recompute = Recompute.selective  # what a compiled layer keeps is as much: see benchmarks/NOTES.md
        named = {name: weight.numel() for name, weight in self.llava.named_parameters()}
        weights = sum(named.values()) * itemsize
        if self.cfg.strategy is Strategy.qlora:
            packed = sum(n for name, n in named.items() if "language_model" in name and "base_layer.weight" in name)
            weights -= round(packed * (itemsize - NF4_BYTES))
        return Sizes(
            weights=weights,
            parameters=sum(named.values()),
            trainable=sum(trainee.weight.numel() for trainee in self.trainees),
            largest=max((trainee.weight.numel() for trainee in self.trainees), default=0),
            weight_bytes=itemsize,
            ranks=ranks,
            micro_batches=work.micro_batches,
            activations=self.each.kept(work, recompute),
            again=self.each.again(work, recompute),
            one_layer=self.each.back(work),
            targets=work.batch_targets,
            vocabulary=self.llava.config.text_config.vocab_size,
            pixels=work.batch_images * 3 * edge * edge,
            is_gpu=is_gpu,
            saves_midway=runtime.save_minutes is not None or not 0 < work.steps <= runtime.save_every,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of adapters: they are announced when they are really made, and their library's warnings too."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def by_part(named: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the sums of sizes by the part that a parameter's name belongs to."""
    found: dict[str, int] = {}
    for name, size in named:
        part = strategy.part_of(name)
        if part is not None:
            found[part] = found.get(part, 0) + size
    return found


def _is_in_layers(name: str) -> bool:
    return "language_model." in name and ".layers." in name
