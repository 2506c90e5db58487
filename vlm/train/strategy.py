"""What trains under each strategy, said by name before the first step.

projector       the projector
freeze_vision   projector and language model
full            tower (up to its feature layer), projector and language model
lora            adapters on the language model's linear layers, and the projector
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from peft import LoraConfig as PeftLora
from peft import get_peft_model
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm.config import LearningRates, LoraConfig, Strategy
from vlm.errors import Unusable
from vlm.model.forward import layers_used
from vlm.model.projector import is_linear

PROJECTOR = "multi_modal_projector"
PARTS: dict[Strategy, tuple[str, ...]] = {
    Strategy.projector: ("projector",),
    Strategy.freeze_vision: ("projector", "language_model"),
    Strategy.full: ("vision_tower", "projector", "language_model"),
    Strategy.lora: ("projector", "lora"),
}


@dataclass(frozen=True)
class Trainee:
    """A parameter that trains."""

    name: str
    part: str  # projector | language_model | vision_tower | lora
    weight: nn.Parameter

    @property
    def decays(self) -> bool:
        """Norms and biases, the one-dimensional ones, have no weight decay."""
        return self.weight.ndim > 1


def choose(
    llava: LlavaForConditionalGeneration, strategy: Strategy, lora: LoraConfig, seed_of: Callable[[], None]
) -> tuple[nn.Module, list[Trainee]]:
    """Freeze what the strategy freezes; return the model, with adapters if it asks for them, and what trains.

    `seed_of` is called before adapters are drawn. Raises Unusable if a LoRA target names no layer.
    """
    used, is_one_layer = layers_used(llava), is_linear(llava.config)
    model: nn.Module = llava
    if strategy is Strategy.lora:
        seed_of()
        model = _with_adapters(llava, lora)
    trainees = []
    for name, weight in model.named_parameters():
        part = part_of(name)
        trains = part in PARTS[strategy] and not _is_unused(name, used) and not (is_one_layer and _is_second(name))
        weight.requires_grad_(trains)
        if trains:
            trainees.append(Trainee(name, part, weight))
    return model, trainees


def part_of(name: str) -> str | None:
    """Return the part that a parameter belongs to; None for the frozen original of an adapted projector."""
    if ".original_module." in name:
        return None
    if "lora_" in name:
        return "lora"
    if PROJECTOR in name:
        return "projector"
    return "vision_tower" if "vision_tower." in name else "language_model"


def param_groups(trainees: list[Trainee], lr: LearningRates, weight_decay: float) -> list[dict]:
    """Return optimizer groups: one for each part and decay, with `part` and the peak rate as `peak_lr`."""
    groups = []
    for part in dict.fromkeys(trainee.part for trainee in trainees):
        for decays in (True, False):
            weights = [trainee.weight for trainee in trainees if trainee.part == part and trainee.decays is decays]
            if weights:
                peak = float(getattr(lr, part))
                decay = weight_decay if decays else 0.0
                groups.append({"params": weights, "part": part, "lr": peak, "peak_lr": peak, "weight_decay": decay})
    return groups


def table(model: nn.Module, trainees: list[Trainee]) -> str:
    """Return what trains and what is frozen, by part, in lines for a person."""
    lines = []
    total = sum(weight.numel() for weight in model.parameters())
    for part in dict.fromkeys(trainee.part for trainee in trainees):
        members = [trainee for trainee in trainees if trainee.part == part]
        size = sum(trainee.weight.numel() for trainee in members)
        lines.append(f"  trains  {part:15} {size:>13,} parameters in {len(members)} tensors, {members[0].name} …")
    training = sum(trainee.weight.numel() for trainee in trainees)
    return "\n".join([*lines, f"  frozen  {'':15} {total - training:>13,} parameters"])


def _with_adapters(llava: LlavaForConditionalGeneration, lora: LoraConfig) -> nn.Module:
    targets = rf".*\blanguage_model\..*\.({'|'.join(map(re.escape, lora.targets))})"  # never the tower's attention
    if not any(re.fullmatch(targets, name) for name, _ in llava.named_modules()):
        raise Unusable(f"finetune.lora.targets={lora.targets} name no layer of the language model")
    settings = PeftLora(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=[PROJECTOR],
    )
    return get_peft_model(llava, settings)


def _is_second(name: str) -> bool:
    """Say whether a weight is of the projector's second layer, which is the identity where the projector is linear."""
    return PROJECTOR in name and ".linear_2." in name


def _is_unused(name: str, layers: int) -> bool:
    """Say whether a tower weight lies behind the feature layer, where no gradient ever comes."""
    if "vision_tower." not in name:
        return False
    found = re.search(r"vision_tower\.(?:vision_model\.)?encoder\.layers\.(\d+)\.", name)
    return int(found[1]) >= layers if found else bool(re.search(r"post_layernorm|\.head\.", name))
