"""Estimates against the runs they are for: what is exact must be equal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from vlm.config import LearningRates, LoraConfig, ModelConfig, Recompute, Strategy, TrainConfig, TrainRuntime
from vlm.data.index import INDEX, MANIFEST, ROW
from vlm.errors import Unusable
from vlm.train.preflight import Estimate, estimate, figures
from vlm.train.run import train


@pytest.mark.parametrize("strategy", list(Strategy))
def test_steps_tokens_samples_and_parameters_are_those_of_the_run(
    settings, strategy, tiny_model, tiny_model_config, tiny_shards, tmp_path
):
    cfg = settings(strategy, steps=None, epochs=0.5, packing=True)
    split = tiny_shards / "finetune"
    found = estimate(cfg, 0, tiny_model_config, base=tiny_model, split=split, ranks=1, is_gpu=False)
    ran = train(cfg, 0, base=tiny_model, split=split, out=tmp_path)
    work = found.workload
    assert (work.steps, work.samples, work.tokens, work.targets) == (
        ran["step"], ran["samples"], ran["tokens"], ran["targets"],
    )  # fmt: skip
    assert sum(found.trainable.values()) == ran["trainable_parameters"]


@pytest.fixture(scope="module")
def llava_1_5(tmp_path_factory) -> tuple[Path, ModelConfig]:
    """LLaVA-1.5-7B's configs, and indexes as long as its two corpora."""
    folder = tmp_path_factory.mktemp("llava_1_5")
    LlamaConfig(vocab_size=32000, architectures=["LlamaForCausalLM"]).save_pretrained(folder / "vicuna")
    CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    ).save_pretrained(folder / "clip")
    for name, rows in (("pretrain", 558_128), ("finetune", 665_298)):
        index(folder / name, rows)
    return folder, ModelConfig(language_model=str(folder / "vicuna"), vision_tower=str(folder / "clip"))


def of_llava_1_5(llava_1_5, cfg: TrainConfig, split: str) -> Estimate:
    folder, model = llava_1_5
    return estimate(cfg, 0, model, base=None, split=folder / split, ranks=8, is_gpu=True)


def test_llava_1_5_has_its_published_steps_and_parameters(llava_1_5):
    """Liu et al., Improved Baselines with Visual Instruction Tuning, 2023, and the logs released with it."""
    rates = LearningRates(projector=1e-3, language_model=2e-5)
    first = of_llava_1_5(
        llava_1_5, TrainConfig(strategy=Strategy.projector, lr=rates, samples_per_step=256, packing=False), "pretrain"
    )
    second = of_llava_1_5(
        llava_1_5,
        TrainConfig(strategy=Strategy.freeze_vision, lr=rates, samples_per_step=128, packing=False),
        "finetune",
    )
    assert (first.workload.steps, second.workload.steps) == (2_181, 5_198)
    assert first.trainable == {"projector": 20_979_712}
    assert second.parameters == {
        "vision_tower": 303_507_456,
        "projector": 20_979_712,
        "language_model": 6_476_271_616,
        "embeddings": 262_144_000,
    }


ZERO3 = {"zero_optimization": {"stage": 3}}
SIXTEEN_ROWS = TrainRuntime(rows_at_once=16, recompute=Recompute.full)  # a device, as its scripts have it
EVERY_LAYER = LoraConfig(128, 256, 0.05, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])


def test_llava_1_5_fits_where_it_was_trained(llava_1_5):
    """In full on 8 x A100-80 with ZeRO-3, which without ZeRO is nearly twice as much; by LoRA on 8 x 24 GB.

    Without ZeRO bfloat16's float32 masters and moments are still spread, but no weights and no gradients.
    """
    rates = LearningRates(projector=2e-5, language_model=2e-5, lora=2e-4)
    full = TrainConfig(strategy=Strategy.freeze_vision, lr=rates, deepspeed=ZERO3, runtime=SIXTEEN_ROWS)
    by_lora = replace(full, strategy=Strategy.lora, lora=EVERY_LAYER)
    needed = [
        of_llava_1_5(llava_1_5, cfg, "finetune").bytes_needed / 2**30
        for cfg in (full, replace(full, deepspeed={}), by_lora)
    ]
    assert 14 < needed[0] < 40 and 1.5 * needed[0] < needed[1] < 79  # masters, moments and weights alone are 14
    assert needed[2] < 23.5


def index(folder, rows: int) -> None:
    folder.mkdir()
    table = np.zeros(rows, ROW)
    table["images"], table["tokens"], table["targets"] = 1, 640, 20
    np.save(folder / INDEX, table)
    (folder / MANIFEST).write_text(json.dumps({"image_tokens": 576, "form": "chat", "max_tokens": 2048}))


def test_without_shards_memory_is_that_of_the_fullest_micro_batch(settings, tiny_model_config, tiny_shards):
    more = {"max_tokens": 512, "ranks": 1, "is_gpu": False, "zeros": {}}
    cfg = settings(packing=True)
    guessed = figures(cfg, 0, tiny_model_config, base=None, shards=None, split="pretrain", **more)
    known = figures(cfg, 0, tiny_model_config, base=None, shards=tiny_shards, split="pretrain", **more)
    assert guessed["workload"]["steps"] == 0
    assert sum(guessed["memory"].values()) >= sum(known["memory"].values())
    with pytest.raises(Unusable, match="holds no shards"):
        figures(cfg, 0, tiny_model_config, base=None, shards=tiny_shards, split="nothing", **more)


def test_the_settings_as_they_are_are_one_of_the_choices(settings, tiny_model_config, tiny_shards):
    zeros = {"zero2": {"zero_optimization": {"stage": 2}}, "zero3": {"zero_optimization": {"stage": 3}}}
    cfg = settings(packing=True)
    for deepspeed, name in ((zeros["zero2"], "zero2"), ({"zero_optimization": {"stage": 1}}, "as set")):
        found = estimate(
            replace(cfg, deepspeed=deepspeed), 0, tiny_model_config, base=None, split=tiny_shards / "finetune", ranks=2,
            is_gpu=True, zeros=zeros,
        )  # fmt: skip
        own = (name, found.recompute, found.rows, 2)
        mine = [one for one in found.choices if (one.zero, one.recompute, one.rows, one.ranks) == own]
        assert [one.memory for one in mine] == [found.bytes_needed]
        assert mine[0].flops == sum(found.flops.values()) and mine[0].padding == found.workload.padding
        assert {one.zero for one in found.choices} == {*zeros, name}
        assert {one.ranks for one in found.choices if one.zero == "zero3"} > {2, 4}
