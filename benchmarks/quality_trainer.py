"""Transformers' Trainer on the demo, with PEFT's adapters as train-llava has them."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments, set_seed

from benchmarks.conversations import Conversations, pad

BATCH = 16
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*QKVO, "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """How Trainer trains: adapters on every layer of these names, tower included, and the projector at one rate."""

    title: str
    alpha: int
    targets: list[str]
    rates: tuple[float, ...]  # of which the best is taken
    rank: int = 32
    dropout: float = 0.05


RECIPES = {
    "train_llava": Recipe("as train-llava", 8, QKVO, (4e-4,)),  # it left alpha at PEFT's default
    "its_adapters": Recipe("its adapters, best rate", 8, QKVO, (4e-4, 1e-3, 2.5e-3, 6e-3)),
    "our_adapters": Recipe("our adapters, best rate", 64, LINEAR, (4e-4, 1e-3, 2.5e-3), dropout=0.0),
}


def train(recipe: Recipe, rate: float, base: Path, corpus: Path, count: int, seed: int, out: Path) -> float:
    """Train on `count` conversations and leave the merged model in `out`/model; return the seconds."""
    set_seed(seed)
    processor = AutoProcessor.from_pretrained(base)
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    adapters = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.targets,
        modules_to_save=["multi_modal_projector"],
    )
    data = Conversations(corpus / "finetune.json", corpus / "images", processor, count)
    settings = TrainingArguments(
        output_dir=str(out / "trainer"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=rate,
        lr_scheduler_type="linear",
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        logging_steps=100,
        seed=seed,
    )
    filler = processor.tokenizer.pad_token_id
    trainer = Trainer(
        get_peft_model(model, adapters), settings, lambda samples: pad(samples, filler), train_dataset=data
    )
    began = time.monotonic()
    trainer.train()
    took = time.monotonic() - began
    trainer.model.merge_and_unload().save_pretrained(out / "model")
    return took
