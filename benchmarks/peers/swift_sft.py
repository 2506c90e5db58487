"""ms-swift as a contestant, by its own command's function; the texts are those of our chat template.

It packs only where flash-attention is, and no LLaVA of transformers' class: its template says so.
"""

import json
import sys
from pathlib import Path

import torch
from swift.pipelines import sft_main
from swift.template import TemplateMeta, register_template
from swift.template.templates.llava import LlavaHfTemplate

from benchmarks.turns import Turns, watch_transformers


class Written(LlavaHfTemplate):
    """The prompt is whole already: nothing is added to it."""

    def replace_tag(self, media_type: str, index: int, inputs: object) -> list[str]:
        return ["<image>"]


def main() -> None:
    """Train as the settings file says, a step a turn."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    turns, trained = Turns(), watch_transformers()
    turns.begin()
    register_template(
        TemplateMeta("written", prefix=[], prompt=["{{QUERY}}"], chat_sep=[], suffix=[], template_cls=Written)
    )
    given = []
    for name, value in options_of(asked, Path(asked["out"])).items():
        given += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    sft_main(given)
    if asked["save"]:
        trained.save(asked["save"])
    turns.end(losses=trained.losses)


def options_of(asked: dict, out: Path) -> dict:
    """Return what is asked for by its own names."""
    options = {
        "model": asked["model"],
        "model_type": "llava1_5_hf",
        "template": "written",
        "dataset": asked["listed"],
        "tuner_type": "lora" if asked["strategy"] == "lora" else "full",
        "freeze_llm": asked["strategy"] == "projector",
        "freeze_vit": asked["strategy"] != "full",
        "freeze_aligner": False,
        "torch_dtype": "bfloat16" if asked["bfloat16"] else "float32",
        "attn_impl": "sdpa",
        "gradient_checkpointing": asked["recompute"],
        "per_device_train_batch_size": asked["rows"],
        "gradient_accumulation_steps": asked["samples"] // asked["rows"],
        "num_train_epochs": asked["steps"],
        "learning_rate": asked["rate"],
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 4096,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": asked["workers"],
        "seed": asked["seed"],
        "output_dir": str(out / "saved"),
        "use_cpu": not torch.cuda.is_available(),
        "load_from_cache_file": False,
    }
    if asked["strategy"] == "lora":
        options |= {"lora_rank": asked["lora"]["rank"], "lora_alpha": int(asked["lora"]["alpha"]), "lora_dropout": 0.0}
        targets = rf".*language_model.*\.({'|'.join(asked['lora']['targets'])})"  # names alone are of the tower too
        options |= {"target_regex": targets, "modules_to_save": ["multi_modal_projector"]}
    return options


if __name__ == "__main__":
    main()
