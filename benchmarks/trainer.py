"""transformers' Trainer on `LlavaForConditionalGeneration`, as train-llava and LLaVA run it: the peer of 03 and 04.

Padded batches with an attention mask, logits at every position, activations recomputed in the backward pass, pictures
through the stock processor in the training process. It reads the same shards in the same order, so its losses are
those of our training as long as both do the same work.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import AutoImageProcessor, LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

from vlm.config import Dtype, TrainConfig
from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.data.pixels import decode
from vlm.train import strategy
from vlm.train.planning import plan_of

IGNORED = -100
ZERO_2 = {  # in the way of LLaVA's zero2.json
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": "auto"},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    **dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"),
}


class Samples(Dataset):
    """The samples of a split in a plan's order: ids, labels and decoded pictures."""

    def __init__(self, split: Path, cfg: TrainConfig, seed: int, chat: Chat) -> None:
        self.split = Split(split)
        self.order = plan_of(cfg, seed, self.split).order
        self.chat = chat

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        stored = self.split.read(int(self.order[position]))
        encoded = self.chat.encode(stored.sample.turns, len(stored.pictures), self.split.form, 1 << 20)
        labels = np.where(encoded.is_target, encoded.ids, IGNORED)
        return {"ids": encoded.ids, "labels": labels, "pictures": [decode(data) for data in stored.pictures]}


class Collator:
    """Pads to the longest sample; pictures go through the model's own image processor."""

    def __init__(self, model: Path, pad: int) -> None:
        self.processor = AutoImageProcessor.from_pretrained(model, local_files_only=True)
        self.pad = pad

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        shape = (len(samples), max(len(sample["ids"]) for sample in samples))
        batch = {
            "input_ids": torch.full(shape, self.pad),
            "labels": torch.full(shape, IGNORED),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
        }
        for row, sample in enumerate(samples):
            length = len(sample["ids"])
            batch["input_ids"][row, :length] = torch.from_numpy(sample["ids"])
            batch["labels"][row, :length] = torch.from_numpy(sample["labels"])
            batch["attention_mask"][row, :length] = 1
        if pictures := [picture for sample in samples for picture in sample["pictures"]]:
            batch["pixel_values"] = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return batch


class InOrder(Trainer):
    """Takes the samples as they come, so that both contestants see the same ones in the same step."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """The seconds and the loss of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.start = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def train(
    cfg: TrainConfig,
    seed: int,
    *,
    base: Path,
    split: Path,
    out: Path,
    rows: int,
    deepspeed: dict | None = None,
    saves: bool = True,
    recompute: bool = True,
) -> Clock:
    """Train a model folder on a split, `rows` samples at once; return what each step took and its loss.

    A checkpoint is left in `out` at the end if `deepspeed` names a config, unless `saves` is false. Without `recompute` all activations are held.
    """
    bfloat16 = cfg.dtype is Dtype.bfloat16
    model = LlavaForConditionalGeneration.from_pretrained(
        base, local_files_only=True, dtype=torch.bfloat16 if bfloat16 else torch.float32
    )
    model, trainees = strategy.choose(model, cfg.strategy, cfg.train, cfg.lora, lambda: torch.manual_seed(seed))
    chat = Chat.of_model(base)
    samples = Samples(split, cfg, seed, chat)
    clock = Clock()
    rates = {trainee.part: float(getattr(cfg.lr, trainee.part) or cfg.lr.language_model) for trainee in trainees}
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=cfg.samples_per_step // rows,
        max_steps=len(samples) // cfg.samples_per_step,
        learning_rate=max(rates.values()),
        lr_scheduler_type=cfg.schedule.value,
        warmup_steps=cfg.warmup_ratio,  # below 1: of all steps
        weight_decay=cfg.weight_decay,
        max_grad_norm=cfg.max_grad_norm,
        bf16=bfloat16,
        gradient_checkpointing=recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_strategy="steps" if deepspeed and saves else "no",
        save_steps=1,
        deepspeed=deepspeed,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    collator = Collator(base, chat.tokenizer.pad_token_id)
    InOrder(model=model, args=arguments, train_dataset=samples, data_collator=collator, callbacks=[clock]).train()
    return clock
