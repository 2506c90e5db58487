import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from vlm.config import ADAPTED, LearningRates, Strategy
from vlm.errors import Unusable
from vlm.model import verify
from vlm.train import run as training
from vlm.train.run import train

EXPORTS = [
    *((strategy, {}) for strategy in Strategy),
    (Strategy.lora, {"dora": True}),
    (Strategy.lora, {"rslora": True}),
]


@pytest.mark.parametrize(
    ("strategy", "more"), EXPORTS, ids=lambda value: "".join(value) if isinstance(value, dict) else value.value
)
def test_the_exported_model_gives_the_logits_that_training_saw_and_not_the_bases(
    settings, tiny_model, tiny_shards, tmp_path, strategy, more
):
    cfg = settings(strategy)
    cfg.lora = replace(cfg.lora, **more)
    train(cfg, 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path)
    trained = load_file(tmp_path / verify.PROBE)["logits"]
    adapter = [tiny_model, tmp_path / "adapter"] if strategy in ADAPTED else []
    nf4 = ["nf4"] if strategy is Strategy.qlora else []
    answers = verify.answer(tmp_path / verify.PROBE, tmp_path / "model", *adapter, *nf4)
    compared = verify.comparisons(trained, answers, torch.float32)
    assert len(compared) == 1 + bool(adapter) + bool(nf4)
    for name, (ours, theirs, bound) in compared.items():
        assert verify.difference(ours, theirs) <= bound, name
    before = verify.answer(tmp_path / verify.PROBE, tiny_model)["model"]
    assert verify.difference(before, answers["model"]) > 1e-3
    assert type(AutoProcessor.from_pretrained(tmp_path / "model")).__name__ == "LlavaProcessor"


def test_what_did_not_change_is_linked_to_the_base(settings, tiny_model, tiny_shards, tmp_path):
    train(settings(Strategy.projector), 0, base=tiny_model, split=tiny_shards / "pretrain", out=tmp_path)
    for part, shared in (("vision_tower", True), ("language_model", True), ("multi_modal_projector", False)):
        name = f"model-{part}-00001.safetensors"
        assert (tmp_path / "model" / name).samefile(tiny_model / name) is shared


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_bfloat16_training_keeps_float32_masters(settings, tiny_model, tiny_shards, tmp_path, zero):
    from vlm.config import Dtype

    cfg = settings(Strategy.projector, zero, dtype=Dtype.bfloat16)
    train(cfg, 0, base=tiny_model, split=tiny_shards / "pretrain", out=tmp_path)
    saved = load_file(tmp_path / "checkpoints/step_000006/weights.safetensors")
    weight = next(tensor for name, tensor in saved.items() if name.endswith("linear_1.weight"))
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())


def refused(settings, tiny_model, split, out, monkeypatch, match: str, **changes) -> None:
    """Check that training is refused before the model is loaded."""
    monkeypatch.setattr(
        training.LlavaForConditionalGeneration, "from_pretrained", lambda *a, **k: pytest.fail("loaded")
    )
    with pytest.raises(Unusable, match=match):
        train(settings(**changes), 0, base=tiny_model, split=split, out=out)


def test_a_pack_smaller_than_a_sample_is_refused(settings, tiny_model, tiny_shards, tmp_path, monkeypatch):
    refused(settings, tiny_model, tiny_shards / "finetune", tmp_path, monkeypatch, "cannot hold", pack_tokens=8)


def test_a_part_that_trains_without_a_rate_is_refused(settings, tiny_model, tiny_shards, tmp_path, monkeypatch):
    changes = {"lr": LearningRates(projector=1e-3)}
    match = r"lr\.language_model has no value"
    refused(settings, tiny_model, tiny_shards / "finetune", tmp_path, monkeypatch, match, **changes)


def test_targets_that_name_nothing_leave_no_work_begun(settings, tiny_model, tiny_shards, tmp_path):
    cfg = settings(Strategy.lora)
    cfg.lora = replace(cfg.lora, targets=["qproj"])
    with pytest.raises(Unusable, match="qproj names no layer"):
        train(cfg, 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path)
    assert not list(tmp_path.iterdir())  # so the same run takes the corrected settings


def test_missing_shards_are_refused(settings, tiny_model, tiny_shards, tmp_path, monkeypatch):
    refused(settings, tiny_model, tiny_shards / "nothing", tmp_path, monkeypatch, "holds no shards")


def test_shards_of_another_tower_are_refused(settings, tiny_model, tiny_shards, tmp_path, monkeypatch):
    other = tmp_path / "finetune"
    shutil.copytree(tiny_shards / "finetune", other)
    manifest = other / "shards.json"
    manifest.write_text(manifest.read_text().replace('"image_tokens": 4', '"image_tokens": 9'))
    refused(settings, tiny_model, other, tmp_path, monkeypatch, "sharded for 9 tokens a picture, the model has 4")


def test_shards_of_another_tokenizer_are_refused(settings, tiny_model, tiny_shards, tmp_path, monkeypatch):
    other = tmp_path / "finetune"
    shutil.copytree(tiny_shards / "finetune", other)
    rows = np.load(other / "index.npy")
    rows["tokens"] += 1
    np.save(other / "index.npy", rows)
    refused(settings, tiny_model, other, tmp_path, monkeypatch, "^sample .* another tokenizer or version, shard again$")


def test_a_missing_shard_or_the_index_of_other_shards_is_refused(
    settings, tiny_model, tiny_shards, tmp_path, monkeypatch
):
    other = tmp_path / "finetune"
    shutil.copytree(tiny_shards / "finetune", other)
    np.save(other / "index.npy", np.load(other / "index.npy")[:-1])
    refused(settings, tiny_model, other, tmp_path, monkeypatch, "an index of 23 samples, not 24: shard again")
    (other / "000001.tar").unlink()
    refused(settings, tiny_model, other, tmp_path, monkeypatch, r"lacks 000001.tar \(1 missing\)")
