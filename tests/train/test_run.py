import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from vlm.config import Strategy
from vlm.errors import Unusable
from vlm.train import run as training
from vlm.train.run import train


def logits_of(model, pixels) -> torch.Tensor:
    ids = torch.tensor([[5, *[model.config.image_token_id] * 4, 9, 11, 40]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture
def pixels():
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("strategy", list(Strategy), ids=lambda strategy: strategy.value)
def test_the_exported_model_gives_the_logits_that_training_saw(
    settings, tiny_model, tiny_shards, tmp_path, monkeypatch, pixels, strategy
):
    seen = {}
    export = training._export

    def look_first(model, *rest):
        seen["logits"] = logits_of(model, pixels)
        export(model, *rest)

    monkeypatch.setattr(training, "_export", look_first)
    train(settings(strategy), 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path)
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert type(AutoProcessor.from_pretrained(tmp_path / "model")).__name__ == "LlavaProcessor"
    torch.testing.assert_close(logits_of(exported, pixels), seen["logits"], rtol=1e-5, atol=1e-5)
    assert (logits_of(exported, pixels) - logits_of(base_of(tiny_model), pixels)).abs().max() > 1e-3


def base_of(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder)


def test_base_with_adapter_equals_the_merged_model(settings, tiny_model, tiny_shards, tmp_path, pixels):
    train(settings(Strategy.lora), 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path)
    adapted = PeftModel.from_pretrained(base_of(tiny_model), tmp_path / "adapter")
    merged = base_of(tmp_path / "model")
    torch.testing.assert_close(logits_of(adapted, pixels), logits_of(merged, pixels), rtol=1e-5, atol=1e-5)


def test_what_did_not_change_is_linked_to_the_base(settings, tiny_model, tiny_shards, tmp_path):
    train(settings(Strategy.projector), 0, base=tiny_model, split=tiny_shards / "pretrain", out=tmp_path)
    for part, shared in (("vision_tower", True), ("language_model", True), ("multi_modal_projector", False)):
        name = f"model-{part}-00001.safetensors"
        assert (tmp_path / "model" / name).samefile(tiny_model / name) is shared


def test_bfloat16_training_keeps_float32_masters(settings, tiny_model, tiny_shards, tmp_path):
    from safetensors.torch import load_file

    from vlm.config import Dtype

    cfg = settings(Strategy.projector, 1, dtype=Dtype.bfloat16)
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
    refused(settings, tiny_model, other, tmp_path, monkeypatch, "^sample .* another tokenizer$")


def test_a_missing_shard_or_the_index_of_other_shards_is_refused(
    settings, tiny_model, tiny_shards, tmp_path, monkeypatch
):
    other = tmp_path / "finetune"
    shutil.copytree(tiny_shards / "finetune", other)
    np.save(other / "index.npy", np.load(other / "index.npy")[:-1])
    refused(settings, tiny_model, other, tmp_path, monkeypatch, "an index of 23 samples, not 24: shard again")
    (other / "000001.tar").unlink()
    refused(settings, tiny_model, other, tmp_path, monkeypatch, r"lacks 000001.tar \(1 missing\)")
