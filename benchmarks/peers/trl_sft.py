"""TRL's SFTTrainer as a contestant: its own collator, loss and defaults; the texts are those of our chat template."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
from trl import SFTConfig, SFTTrainer

from benchmarks.turns import Turns, losses_of_transformers


def main() -> None:
    """Train as the settings file says, a step a turn."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    turns, losses = Turns(), losses_of_transformers()
    turns.begin()
    dtype = torch.bfloat16 if asked["bfloat16"] else torch.float32
    model = LlavaForConditionalGeneration.from_pretrained(asked["model"], dtype=dtype)
    if asked["strategy"] == "projector":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    adapters = LoraConfig(
        r=asked["lora"]["rank"],
        lora_alpha=asked["lora"]["alpha"],
        lora_dropout=0.0,
        target_modules=rf".*language_model.*\.({'|'.join(asked['lora']['targets'])})",
        modules_to_save=["multi_modal_projector"],
    )
    settings = SFTConfig(
        output_dir=asked["out"],
        per_device_train_batch_size=asked["rows"],
        gradient_accumulation_steps=asked["samples"] // asked["rows"],
        num_train_epochs=asked["steps"],
        learning_rate=asked["rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        bf16=asked["bfloat16"],
        gradient_checkpointing=asked["recompute"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    records = json.loads(Path(asked["listed"]).read_text())
    columns = {"prompt": [], "completion": [], "images": []}
    for record in records:
        columns["prompt"].append(record["prompt"])
        columns["completion"].append(record["answer"])
        columns["images"].append([Image.open(path).convert("RGB") for path in record["images"]])
    SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoProcessor.from_pretrained(asked["model"]),
        peft_config=adapters if asked["strategy"] == "lora" else None,
    ).train()
    turns.end(losses=losses)


if __name__ == "__main__":
    main()
