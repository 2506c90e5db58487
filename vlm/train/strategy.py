"""What trains under each strategy, said by name before the first step.

projector       the projector
freeze_vision   projector and language model
full            tower (up to its feature layer), projector and language model
lora            adapters on the language model's linear layers, and the projector
qlora           the same on a language model in NF4

`train.<part>=true|false` adds or takes away a part of the first three, and the projector of the last two.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm.config import ADAPTED, LearningRates, LoraConfig, Parts, Strategy
from vlm.errors import Unusable
from vlm.model.forward import layers_used
from vlm.model.projector import is_linear

PARTS: dict[Strategy, tuple[str, ...]] = {
    Strategy.projector: ("projector",),
    Strategy.freeze_vision: ("projector", "language_model", "embeddings"),
    Strategy.full: ("vision_tower", "projector", "language_model", "embeddings"),
    Strategy.lora: ("projector", "lora"),
    Strategy.qlora: ("projector", "lora"),
}
FILES = {  # the weight files that hold a part
    "projector": "multi_modal_projector",
    "language_model": "language_model",
    "embeddings": "language_model",
    "lora": "language_model",
    "vision_tower": "vision_tower",
}
PROJECTOR = "multi_modal_projector"
TOWER_LAYER = re.compile(r"vision_tower\.(?:vision_model\.)?encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Trainee:
    """A parameter that trains."""

    name: str
    part: str  # projector | language_model | embeddings | vision_tower | lora
    weight: nn.Parameter
    below: int = 0  # how many of the tower's layers that train lie above it

    @property
    def decays(self) -> bool:
        """Norms and biases, the one-dimensional ones, have no weight decay."""
        return self.weight.ndim > 1


def parts_that_train(strategy: Strategy, switches: Parts) -> tuple[str, ...]:
    """Return the parts that train, in the model's order.

    Raises Unusable if none does.
    """
    wanted = set(PARTS[strategy])
    for part in ("projector", "language_model", "vision_tower"):
        switch = getattr(switches, part)
        if switch is not None:
            (wanted.add if switch else wanted.discard)(part)
    wants_words = "language_model" in wanted if switches.embeddings is None else switches.embeddings
    (wanted.add if wants_words else wanted.discard)("embeddings")
    if not wanted:
        raise Unusable("nothing trains: one of train.projector, train.language_model, train.vision_tower must be true")
    return tuple(
        part for part in ("vision_tower", "projector", "language_model", "embeddings", "lora") if part in wanted
    )


def choose(
    llava: LlavaForConditionalGeneration,
    strategy: Strategy,
    switches: Parts,
    lora: LoraConfig,
    seed_of: Callable[[], None],
) -> tuple[nn.Module, list[Trainee]]:
    """Freeze what the strategy freezes; return the model, with adapters if it asks for them, and what trains.

    `seed_of` is called before adapters are drawn. Raises Unusable if a LoRA target names no layer.
    """
    used, is_one_layer = layers_used(llava), is_linear(llava.config)
    training = parts_that_train(strategy, switches)
    model: nn.Module = llava
    if strategy in ADAPTED:
        from vlm.train.adapters import with_adapters  # peft takes seconds to import

        seed_of()
        model = with_adapters(llava, lora, projector="projector" in training)
    trainees = []
    for name, weight in model.named_parameters():
        part = part_of(name)
        trains = part in training and not _is_unused(name, used) and not (is_one_layer and _is_second(name))
        weight.requires_grad_(trains)
        if trains:
            trainees.append(Trainee(name, part, weight, _layers_above(name, used)))
    return model, trainees


def shape_of(weight: nn.Parameter) -> torch.Size:
    """Return a weight's full shape, also where ZeRO-3 leaves only a part on this rank."""
    return getattr(weight, "ds_shape", weight.shape)


def part_of(name: str) -> str | None:
    """Return the part that a parameter belongs to; None for the frozen original of an adapted projector."""
    if ".original_module." in name:
        return None
    if "lora_" in name:
        return "lora"
    if PROJECTOR in name:
        return "projector"
    if "vision_tower." in name:
        return "vision_tower"
    return "embeddings" if re.search(r"\b(embed_tokens|lm_head)\b", name) else "language_model"


def peak_of(part: str, lr: LearningRates) -> float:
    """Return the peak rate of a part that trains.

    Raises Unusable if it has none.
    """
    peak = getattr(lr, part)
    if part == "embeddings" and peak is None:
        peak = lr.language_model
    if peak is None:
        raise Unusable(f"lr.{part} has no value, but {part} trains: say lr.{part}=1.0e-5 or so")
    return float(peak)


def param_groups(trainees: list[Trainee], lr: LearningRates, weight_decay: float) -> list[dict]:
    """Return optimizer groups: one for each rate and decay, with `part` and the peak rate as `peak_lr`.

    A tower layer n below the last one has the rate of the tower times vision_layer_decay^n (arXiv 2106.08254), and
    its own group then, vision_tower.below_n. Raises Unusable if a part that trains has no rate.
    """
    groups: dict[tuple[str, bool], dict] = {}
    for trainee in trainees:
        part, peak = trainee.part, _peak(trainee, lr)
        if part == "vision_tower" and lr.vision_layer_decay < 1:
            part = f"vision_tower.below_{trainee.below:02d}"
        decay = weight_decay if trainee.decays else 0.0
        new = {"params": [], "part": part, "lr": peak, "peak_lr": peak, "weight_decay": decay}
        groups.setdefault((part, trainee.decays), new)["params"].append(trainee.weight)
    return list(groups.values())


def table(model: nn.Module, trainees: list[Trainee]) -> str:
    """Return what trains and what is frozen, by part, in lines for a person."""
    lines = []
    total = sum(_size(weight) for weight in model.parameters())
    for part in dict.fromkeys(trainee.part for trainee in trainees):
        members = [trainee for trainee in trainees if trainee.part == part]
        size = sum(trainee.weight.numel() for trainee in members)
        lines.append(f"  trains  {part:15} {size:>13,} parameters in {len(members)} tensors, {members[0].name} …")
    training = sum(trainee.weight.numel() for trainee in trainees)
    return "\n".join([*lines, f"  frozen  {'':15} {total - training:>13,} parameters"])


def _size(weight: torch.Tensor) -> int:
    """Return how many numbers a weight stands for: NF4 packs two into a byte."""
    return weight.numel() * (2 if weight.dtype is torch.uint8 else 1)


def _peak(trainee: Trainee, lr: LearningRates) -> float:
    return peak_of(trainee.part, lr) * (lr.vision_layer_decay**trainee.below if trainee.part == "vision_tower" else 1.0)


def _layers_above(name: str, used: int) -> int:
    """Return how many tower layers that train lie above a weight; 0 outside the tower."""
    if "vision_tower." not in name:
        return 0
    found = TOWER_LAYER.search(name)
    return used - 1 - int(found[1]) if found else used


def _is_second(name: str) -> bool:
    """Say whether a weight is of the projector's second layer, which is the identity where the projector is linear."""
    return PROJECTOR in name and ".linear_2." in name


def _is_unused(name: str, layers: int) -> bool:
    """Say whether a tower weight lies behind the feature layer, where no gradient ever comes."""
    if "vision_tower." not in name:
        return False
    found = TOWER_LAYER.search(name)
    return int(found[1]) >= layers if found else bool(re.search(r"post_layernorm|\.head\.", name))
