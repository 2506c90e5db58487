"""A small training setting that every test of this folder shares."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vlm.config import LearningRates, LoraConfig, Strategy, TrainConfig, TrainRuntime

from ..forked import Forked


@pytest.fixture
def settings():
    """Return a training of 6 steps of 4 samples; keyword arguments change it."""

    def make(strategy: Strategy = Strategy.freeze_vision, zero: int = 0, **changes) -> TrainConfig:
        runtime = {"rows_at_once": 1, "workers": 0, "log_every": 1, "save_every": 2, "keep": 2} | changes.pop(
            "runtime", {}
        )
        return TrainConfig(
            strategy=strategy,
            **{
                "steps": 6,
                "samples_per_step": 4,
                "pack_tokens": 256,
                "warmup_ratio": 0.2,
                "weight_decay": 0.01,
                "lr": LearningRates(projector=1e-2, language_model=2e-3, vision_tower=1e-3, lora=1e-2),
                "lora": LoraConfig(rank=4, alpha=8.0, dropout=0.1, targets=["q_proj", "v_proj", "down_proj"]),
                "deepspeed": {"zero_optimization": {"stage": zero}},
            }
            | changes,
            runtime=TrainRuntime(**runtime),
        )

    return make


@pytest.fixture
def on_ranks(forked: Forked, tiny_model: Path, tiny_shards: Path) -> Callable[..., Path]:
    """Return a function that trains on several ranks in a folder, which it returns."""

    def run(ranks: int, cfg: TrainConfig, out: Path) -> Path:
        out.mkdir(exist_ok=True)
        settings = out.with_suffix(".yaml")
        settings.write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
        script = Path(__file__).with_name("two_ranks.py")
        status, said = forked.run_ranks(ranks, [script, settings, tiny_model, tiny_shards / "finetune", out])
        assert status == 0, said[-3000:]
        return out

    return run


def weights_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every weight file of a model folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}
