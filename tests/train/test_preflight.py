"""Estimates against the runs they are for: what is exact must be equal."""

import json

import pytest

from vlm.config import LearningRates, Strategy, TrainConfig
from vlm.errors import Unusable
from vlm.train.preflight import estimate, figures
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


def test_llava_1_5_has_its_published_steps_and_parameters(tmp_path):
    """Liu et al., Improved Baselines with Visual Instruction Tuning, 2023, and the logs released with it."""
    from transformers import CLIPVisionConfig, LlamaConfig

    from vlm.config import ModelConfig

    LlamaConfig(vocab_size=32000, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "vicuna")
    clip = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    clip.save_pretrained(tmp_path / "clip")
    model = ModelConfig(language_model=str(tmp_path / "vicuna"), vision_tower=str(tmp_path / "clip"))
    for name, rows in (("pretrain", 558_128), ("finetune", 665_298)):
        index(tmp_path / name, rows)
    first = estimate(
        TrainConfig(strategy=Strategy.projector, lr=LearningRates(projector=1e-3), samples_per_step=256, packing=False),
        0, model, base=None, split=tmp_path / "pretrain", ranks=8, is_gpu=True,
    )  # fmt: skip
    second = estimate(
        TrainConfig(strategy=Strategy.freeze_vision, lr=LearningRates(projector=2e-5, language_model=2e-5), samples_per_step=128, packing=False),
        0, model, base=None, split=tmp_path / "finetune", ranks=8, is_gpu=True,
    )  # fmt: skip
    assert (first.workload.steps, second.workload.steps) == (2_181, 5_198)
    assert first.trainable == {"projector": 20_979_712}
    assert second.parameters == {
        "vision_tower": 303_507_456,
        "projector": 20_979_712,
        "language_model": 6_476_271_616,
        "embeddings": 262_144_000,
    }


def index(folder, rows: int) -> None:
    import numpy as np

    from vlm.data.index import INDEX, MANIFEST, ROW

    folder.mkdir()
    table = np.zeros(rows, ROW)
    table["images"], table["tokens"], table["targets"] = 1, 640, 20
    np.save(folder / INDEX, table)
    (folder / MANIFEST).write_text(json.dumps({"image_tokens": 576, "form": "chat", "max_tokens": 2048}))


def test_without_shards_it_says_what_to_run(settings, tiny_model_config):
    with pytest.raises(Unusable, match="run stages/02_shard.py first"):
        figures(settings(), 0, tiny_model_config, base=None, shards=None, split="pretrain", ranks=1, is_gpu=False)
