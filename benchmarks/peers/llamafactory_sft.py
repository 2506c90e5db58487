"""LLaMA-Factory as a contestant, with and without `neat_packing`.

The texts are those of our chat template, under a template of its own registry that adds nothing to them. It reads
pictures and tokens itself, as its users run it.
"""

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

if importlib.util.find_spec("torchaudio") is None:  # it is imported for sound, of which there is none
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

import torch
from llamafactory.data.formatter import StringFormatter
from llamafactory.data.mm_plugin import get_mm_plugin
from llamafactory.data.template import register_template
from llamafactory.train.tuner import run_exp

from benchmarks.turns import Turns, watch_transformers

FROZEN = {"projector": (True, False, True), "full": (False, False, False), "lora": (True, False, False)}


def main() -> None:
    """Train as the settings file says, a step a turn."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    turns, trained = Turns(), watch_transformers()
    turns.begin()
    register_template(
        name="written",  # the prompt is whole already
        format_user=StringFormatter(slots=["{{content}}"]),
        format_assistant=StringFormatter(slots=["{{content}}"]),
        mm_plugin=get_mm_plugin(name="llava", image_token="<image>"),
    )
    describe(Path(asked["listed"]), Path(asked["out"]))
    run_exp(options_of(asked, Path(asked["out"])))
    if asked["save"]:
        trained.save(asked["save"])
    turns.end(losses=trained.losses)


def describe(records: Path, out: Path) -> None:
    """Describe the samples as it wants to have a dataset described, under the name of `records`."""
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    listed = {"records": {"file_name": str(records), "formatting": "sharegpt", "columns": columns, "tags": tags}}
    (out / "dataset_info.json").write_text(json.dumps(listed))


def options_of(asked: dict, out: Path) -> dict:
    """Return what is asked for by its own names."""
    tower, projector, language = FROZEN[asked["strategy"]]
    how: dict = {"finetuning_type": "full"}
    if asked["strategy"] == "lora":
        how = {
            "finetuning_type": "lora",
            "lora_rank": asked["lora"]["rank"],
            "lora_alpha": int(asked["lora"]["alpha"]),
            "lora_target": ",".join(asked["lora"]["targets"]),
            "additional_target": "multi_modal_projector",
        }
    rows, batches = (1, asked["packs"]) if asked["packing"] else (asked["rows"], asked["samples"] // asked["rows"])
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": asked["model"],
        "dataset": "records",
        "dataset_dir": str(out),
        "template": "written",
        "cutoff_len": asked["pack_tokens"],
        "neat_packing": asked["packing"],
        "flash_attn": "sdpa",
        "freeze_vision_tower": tower,
        "freeze_multi_modal_projector": projector,
        "freeze_language_model": language,
        "disable_gradient_checkpointing": not asked["recompute"],
        "output_dir": str(out / "saved"),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": batches,
        "num_train_epochs": asked["steps"],
        "learning_rate": asked["rate"],
        "lr_scheduler_type": "cosine",
        "bf16": asked["bfloat16"],
        "dataloader_num_workers": asked["workers"],
        "seed": asked["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        **how,
    }


if __name__ == "__main__":
    main()
