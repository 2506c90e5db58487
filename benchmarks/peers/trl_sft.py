"""TRL's SFTTrainer as a contestant: its own collator, loss and defaults; the texts are those of our chat template.

They are given as the messages of a chat, under a template that adds nothing to them and marks every answer as what is
to be learnt.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset, Image, List
from peft import LoraConfig
from transformers import AutoProcessor, LlavaForConditionalGeneration
from trl import SFTConfig, SFTTrainer

from benchmarks.turns import Turns, watch_transformers

IMAGE = "<image>"
WRITTEN = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'][0]['text'] }}{% endgeneration %}
{%- else -%}
{%- for part in message['content'] -%}
{{ '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}"""


def main() -> None:
    """Train as the settings file says, a step a turn."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    turns, trained = Turns(), watch_transformers()
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
        assistant_only_loss=True,
        bf16=asked["bfloat16"],
        gradient_checkpointing=asked["recompute"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=asked["workers"],
        seed=asked["seed"],
    )
    processor = AutoProcessor.from_pretrained(asked["model"])
    processor.chat_template = WRITTEN
    SFTTrainer(
        model=model,
        args=settings,
        train_dataset=records_of(Path(asked["listed"])),
        processing_class=processor,
        peft_config=adapters if asked["strategy"] == "lora" else None,
    ).train()
    if asked["save"]:
        trained.save(asked["save"])
    turns.end(losses=trained.losses)


def records_of(listed: Path) -> Dataset:
    """Return the samples as chats, with the place of every picture marked."""
    columns = {"messages": [], "images": []}
    for record in json.loads(listed.read_text()):
        columns["messages"].append([{**said, "content": parts_of(said["content"])} for said in record["messages"]])
        columns["images"].append(record["images"])
    return Dataset.from_dict(columns).cast_column("images", List(Image(mode="RGB")))


def parts_of(text: str) -> list[dict[str, str]]:
    """Return a text cut at its pictures, each part with its kind."""
    before, *rest = text.split(IMAGE)
    parts = [{"type": "text", "text": before}]
    for after in rest:
        parts += [{"type": "image", "text": ""}, {"type": "text", "text": after}]
    return parts


if __name__ == "__main__":
    main()
