"""A saved model becomes one that can be asked: a checkpoint's weights or an adapter are put into its base."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration
from transformers.utils import logging

from vlm.errors import Unusable
from vlm.model.hub import load
from vlm.model.saved import BASES, CHECKPOINT, Saved

TRAININGS = {stage + end for stage in BASES for end in ("", ".partial")}


def restore(saved: Saved, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """Load a saved model in `dtype` on the CPU, with its checkpoint or adapter in it.

    Raises Unusable, naming what does not fit.
    """
    logging.disable_progress_bar()
    settings = {"dtype": dtype, "local_files_only": True}
    model = load(LlavaForConditionalGeneration.from_pretrained, str(saved.folder), "the model", settings)
    if saved.checkpoint:
        model = _with_checkpoint(model, saved.checkpoint)
    if saved.adapter:
        from peft import PeftModel  # takes seconds to import, and only adapters need it

        try:
            model = PeftModel.from_pretrained(model, saved.adapter).merge_and_unload()
        except (ValueError, RuntimeError, KeyError, TypeError) as problem:
            line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise Unusable(f"the adapter {saved.adapter} does not fit {saved.folder}: {line}") from None
    return model.eval()


def _with_checkpoint(model: LlavaForConditionalGeneration, checkpoint: Path) -> LlavaForConditionalGeneration:
    """Put a training's weights into the model it began with; adapters among them are merged."""
    weights = load_file(checkpoint / CHECKPOINT)
    adapted = sorted({name.split(".lora_")[0] for name in weights if ".lora_" in name})
    holder: Any = model
    if adapted:
        from peft import LoraConfig, get_peft_model

        holder = get_peft_model(model, LoraConfig(**_settings(checkpoint, adapted, weights)))
    parameters = dict(holder.named_parameters())
    unknown = [name for name in weights if name not in parameters or parameters[name].shape != weights[name].shape]
    if unknown:
        raise Unusable(
            f"{checkpoint} holds {unknown[0]}, which does not fit the model it should lie on: give eval.base="
        )
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    return holder.merge_and_unload() if adapted else model


def _settings(checkpoint: Path, adapted: list[str], weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the adapters' settings for PEFT, from the config.yaml of the artifact that the checkpoint lies in."""
    file = next((folder / "config.yaml" for folder in checkpoint.resolve().parents if folder.name in TRAININGS), None)
    if file is None or not file.is_file():
        raise Unusable(f"{checkpoint} holds adapters, but no config.yaml above it says their scale")
    stage = file.parent.name.removesuffix(".partial")
    lora = OmegaConf.load(file)[stage.partition("_")[2]].lora
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": [name.removeprefix("base_model.model.") for name in adapted],
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
        "modules_to_save": ["multi_modal_projector"] if any(".modules_to_save." in name for name in weights) else None,
    }
