"""Checkpoints and adapters, loaded by name, are the model that their training exports."""

import shutil
from dataclasses import asdict, replace

import pytest
import torch
from omegaconf import OmegaConf

from vlm.config import LearningRates, LoraConfig, Strategy, TrainConfig, TrainRuntime
from vlm.errors import Unusable
from vlm.model.restore import restore
from vlm.model.saved import find
from vlm.train.run import train

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.1, targets=["q_proj", "down_proj"])


def trained(tiny_model, tiny_shards, root, strategy, lora=LORA):
    """Lay a training's artifact beside its base, as the stages do."""
    base = shutil.copytree(tiny_model, root / "03_pretrain" / "model")
    cfg = TrainConfig(
        strategy=strategy,
        steps=4,
        samples_per_step=4,
        pack_tokens=256,
        lr=LearningRates(projector=1e-2, language_model=2e-3, vision_tower=1e-3, lora=1e-2),
        lora=lora,
        deepspeed={"zero_optimization": {"stage": 0}},
        runtime=TrainRuntime(rows_at_once=1, workers=0, save_every=2, keep=2),
    )
    out = root / "04_finetune.partial"
    out.mkdir()
    (out / "config.yaml").write_text(OmegaConf.to_yaml({"finetune": {"lora": asdict(lora)}}))
    train(cfg, 0, base=base, split=tiny_shards / "finetune", out=out)
    return out


def same(ours, theirs):
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("strategy", "more"),
    [(Strategy.projector, {}), (Strategy.freeze_vision, {}), (Strategy.lora, {}), (Strategy.lora, {"dora": True}),
     (Strategy.lora, {"rslora": True})],
    ids=["projector", "freeze_vision", "lora", "dora", "rslora"],
)  # fmt: skip
def test_the_last_checkpoint_and_the_adapter_are_the_exported_model(tiny_model, tiny_shards, tmp_path, strategy, more):
    out = trained(tiny_model, tiny_shards, tmp_path, strategy, replace(LORA, **more))
    exported = restore(find(str(out)), torch.float32)
    last, before = (find(str(out / "checkpoints" / f"step_00000{step}")) for step in (4, 2))
    same(restore(last, torch.float32), exported)
    assert len({last.fingerprint, before.fingerprint, find(str(out)).fingerprint}) == 3
    with pytest.raises(AssertionError):
        same(restore(before, torch.float32), exported)
    if strategy is Strategy.lora:
        same(restore(find(str(out / "adapter")), torch.float32), exported)
        (out / "config.yaml").unlink()
        with pytest.raises(Unusable, match=r"no config\.yaml above it says their scale"):
            restore(last, torch.float32)


def test_a_checkpoint_of_another_model_is_refused(tiny_model, tiny_shards, tmp_path):
    out = trained(tiny_model, tiny_shards, tmp_path, Strategy.projector)
    saved = find(str(out / "checkpoints" / "step_000004"))
    from safetensors.torch import load_file, save_file

    weights = load_file(saved.checkpoint / "weights.safetensors")
    save_file({f"other.{name}": value for name, value in weights.items()}, saved.checkpoint / "weights.safetensors")
    with pytest.raises(Unusable, match=r"holds other\..*, which does not fit the model"):
        restore(saved, torch.float32)
