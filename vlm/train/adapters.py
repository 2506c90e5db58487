"""Low-rank adapters on the language model: which layers they sit on, said before the first step."""

import json
import re
from collections import Counter
from pathlib import Path

import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm import ranks
from vlm.config import LoraConfig
from vlm.errors import Unusable
from vlm.files import write_whole
from vlm.train.strategy import PROJECTOR

INSIDE = r".*\blanguage_model\."  # where targets are looked for: names like q_proj are the tower's too


def with_adapters(llava: LlavaForConditionalGeneration, lora: LoraConfig, *, projector: bool) -> PeftModel:
    """Put adapters on the layers that `lora` names; with `projector` it trains, and is kept, beside them.

    Raises Unusable if a target names nothing, or something that is no linear layer.
    """
    pattern = pattern_of(lora)
    hit = layers_hit(llava, lora)
    scale = lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
    if ranks.first():
        counts = ", ".join(f"{name} ×{count}" for name, count in Counter(n.rpartition(".")[2] for n in hit).items())
        kind = "DoRA" if lora.dora else "LoRA"
        print(f"{kind} of rank {lora.rank}, scale {scale:g}, on {len(hit)} layers: {counts}", flush=True)
    settings = PeftLora(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=pattern,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        modules_to_save=[PROJECTOR] if projector else None,
    )
    return get_peft_model(llava, settings)


def pattern_of(lora: LoraConfig) -> str:
    """Return the regular expression that the whole name of an adapted layer matches.

    Raises Unusable if the user's is none.
    """
    if lora.targets_regex is None:
        return INSIDE + rf"(?:.*\.)?(?:{'|'.join(map(re.escape, lora.targets))})"
    try:
        re.compile(lora.targets_regex)
    except re.error as problem:
        raise Unusable(f"lora.targets_regex={lora.targets_regex} is no regular expression: {problem}") from None
    return INSIDE + f"(?:{lora.targets_regex})"


def layers_hit(llava: LlavaForConditionalGeneration, lora: LoraConfig) -> list[str]:
    """Return the names of the layers that the targets match.

    Raises Unusable if one of them matches none, or a layer that is not linear.
    """
    hit = {name: layer for name, layer in llava.named_modules() if re.fullmatch(pattern_of(lora), name)}
    missed = [target for target in lora.targets or () if not any(name.endswith(f".{target}") for name in hit)]
    if missed or not hit:
        linear = {
            n.rpartition(".")[2]
            for n, layer in llava.model.language_model.named_modules()
            if isinstance(layer, nn.Linear)
        }
        said = f"lora.targets: {', '.join(missed)}" if lora.targets else f"lora.targets_regex={lora.targets_regex}"
        raise Unusable(f"{said} names no layer of the language model, which has {', '.join(sorted(linear))}")
    for name, layer in hit.items():
        if not isinstance(layer, nn.Linear):
            raise Unusable(f"lora.targets also name {name}, which is a {type(layer).__name__}, not a linear layer")
    return list(hit)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapters, and the projector that trained beside them, as a folder that PEFT loads onto the base.

    The base's place on this machine is left out: the card beside it says which one it is.
    """
    model.save_pretrained(folder, save_embedding_layers=False)
    config = json.loads((folder / "adapter_config.json").read_text())
    write_whole(
        folder / "adapter_config.json",
        json.dumps(config | {"base_model_name_or_path": None}, indent=2, sort_keys=True).encode(),
    )
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own, which names that place


def merged(base: Path, adapter: Path, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """Return the base as it is stored, never a quantised one, with an adapter folder merged into it, on the CPU."""
    llava = LlavaForConditionalGeneration.from_pretrained(base, local_files_only=True, dtype=dtype)
    return PeftModel.from_pretrained(llava, adapter).merge_and_unload()
