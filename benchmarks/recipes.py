"""The README's table of recipes: what preflight expects of some of conf/experiment/ at full size, without their data.

    python -m benchmarks.recipes [--hardware a100_80]

Steps follow from the true number of samples; lengths are made up, about as long as those of the corpora. Models are read
as configs of the true sizes. Nothing is downloaded, trained or measured.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig, Qwen2Config, SiglipVisionConfig

from benchmarks.scaled import captions, mixed
from vlm.config import HardwareConfig, RootConfig, TrainConfig
from vlm.data.index import INDEX, MANIFEST, ROW
from vlm.pipeline.forecast import GIB, Limits, chosen, seconds_of_step
from vlm.pipeline.preflight import machine_of
from vlm.pipeline.settings import typed
from vlm.train.preflight import figures

CONF = Path(__file__).parents[1] / "conf"
CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
QWEN = {"num_hidden_layers": 40, "num_attention_heads": 20, "num_key_value_heads": 20, "vocab_size": 151_936}
ASKED = 40  # tokens of a chat's form and question, beside its picture


@dataclass(frozen=True)
class Recipe:
    """An experiment on some devices, and its stages: node, rows of its split, and what a sample is."""

    experiment: str
    devices: int
    stages: tuple[tuple[str, int, str], ...]  # node; samples; captions | chats | mixture | answers


RECIPES = (
    Recipe("train_llava", 4, (("pretrain", 595_375, "captions"), ("finetune", 595_375, "chats"))),
    Recipe("okvqa", 4, (("finetune", 9_009, "answers"),)),
    Recipe("basic_vlm", 8, (("pretrain", 309_884, "captions"), ("finetune", 309_884, "chats"))),
    Recipe("llava15_7b", 8, (("pretrain", 558_128, "captions"), ("finetune", 665_298, "mixture"))),
)


def main() -> None:
    """Print the table, as README has it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hardware", default="a100_80", help="of conf/hardware/ (default: %(default)s)")
    hardware = parser.parse_args().hardware
    print(
        "| recipe, stage | devices | steps | GiB of one rank, `recompute` none / full | hours, estimated, none / full |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        models = write_models(Path(folder))
        for recipe in RECIPES:
            given = [f"experiment={recipe.experiment}", f"hardware={hardware}", f"hardware.devices={recipe.devices}"]
            cfg = typed(compose("config", [*given, *models[recipe.experiment]]))
            told = [of_stage(cfg, *stage, Path(folder)) for stage in recipe.stages]
            names = " / ".join({"pretrain": "03", "finetune": "04"}[node] for node, *_ in recipe.stages)
            steps, memory, hours = (", then ".join(one) for one in zip(*told, strict=True))
            print(f"| {recipe.experiment} {names} | {recipe.devices} | {steps} | {memory} | {hours} |")


def of_stage(cfg: RootConfig, node: str, samples: int, what: str, folder: Path) -> tuple[str, str, str]:
    """Return steps, memory and hours of a stage, in words."""
    train: TrainConfig = getattr(cfg, node)
    is_large = "siglip" in cfg.model.vision_tower
    split = write_index(folder / f"{what}_{samples}_{is_large}", node, samples, what, 729 if is_large else 576)
    machine = machine_of(cfg, cfg.hardware.devices)
    found = figures(
        train,
        cfg.seed,
        cfg.model,
        base=None,
        shards=split,
        split=node,
        max_tokens=cfg.data.max_tokens,
        ranks=machine.ranks,
        is_gpu=True,
        zeros=machine.zeros,
    )
    memory, hours = zip(*(needs(found, how, cfg.hardware) for how in ("none", "full")), strict=True)
    return f"{found['workload']['steps']:,}", " / ".join(memory), " / ".join(hours)


def needs(found: dict, recompute: str, hardware: HardwareConfig) -> tuple[str, str]:
    """Return GiB and hours with the settings as they are but for what is recomputed."""
    choice = chosen(found | {"recompute": recompute})
    hours = seconds_of_step(found, choice, hardware, Limits()) * found["workload"]["steps"] / 3600
    return f"{choice['memory'] / GIB:.1f}", f"{hours:.1f}"


def write_index(shards: Path, split: str, samples: int, what: str, image_tokens: int) -> Path:
    """Write the index of a split of so many samples of these lengths; return the folder of its shards."""
    rng = np.random.default_rng(0)
    (shards / split).mkdir(parents=True)
    drawn = {"answers": answers, "mixture": mixed}.get(what, captions)(samples, rng)
    pictures, asked, answered = (np.array(column) for column in zip(*drawn, strict=True))
    table = np.zeros(samples, ROW)
    table["images"], table["targets"] = pictures, answered + 1
    table["tokens"] = pictures * image_tokens + asked + answered + (0 if what == "captions" else ASKED)
    np.save(shards / split / INDEX, table)
    (shards / split / MANIFEST).write_text(json.dumps({"image_tokens": image_tokens, "max_tokens": 2048}))
    return shards


def answers(samples: int, _: np.random.Generator) -> list[tuple[bool, int, int]]:
    """Return (has a picture, tokens asked, tokens answered) of short questions."""
    return [(True, 8, 3)] * samples


def write_models(folder: Path) -> dict[str, list[str]]:
    """Write configs of the true sizes; return what each experiment is told of them."""
    clip = CLIPVisionConfig(image_size=336, patch_size=14, **CLIP)
    vicuna = LlamaConfig(vocab_size=32_000, architectures=["LlamaForCausalLM"])
    qwen = {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}
    parts: dict[str, PreTrainedConfig] = {
        "clip": clip,
        "siglip": SiglipVisionConfig(image_size=384, patch_size=14, **SIGLIP),
        "vicuna": vicuna,
        "qwen_4b": Qwen2Config(hidden_size=2560, intermediate_size=6912, **QWEN, **qwen),
        "qwen_7b": Qwen2Config(
            hidden_size=4096,
            intermediate_size=11_008,
            **QWEN | dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_hidden_layers"), 32),
            **qwen,
        ),
        "llava": LlavaConfig(vision_config=clip, text_config=vicuna, architectures=["LlavaForConditionalGeneration"]),
    }
    for name, config in parts.items():
        config.save_pretrained(folder / name)

    def pair(language: str, tower: str) -> list[str]:
        return [f"model.language_model={folder / language}", f"model.vision_tower={folder / tower}"]

    return {
        "train_llava": pair("qwen_4b", "clip"),
        "okvqa": [f"model.base={folder / 'llava'}"],
        "basic_vlm": pair("qwen_7b", "siglip"),
        "llava15_7b": pair("vicuna", "clip"),
    }


if __name__ == "__main__":
    main()
