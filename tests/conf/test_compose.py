"""Every choice of every group composes, and cross-field checks refuse what cannot be."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from vlm.config import RootConfig
from vlm.errors import Unusable
from vlm.pipeline.stage import typed

CONF = Path(__file__).parents[2] / "conf"
CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in {"deepspeed", "instruct"}
]
ZERO = [f"deepspeed@finetune.deepspeed={path.stem}" for path in sorted((CONF / "deepspeed").glob("*.yaml"))]


def composed(*overrides: str) -> RootConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", list(overrides)))


@pytest.mark.parametrize("choice", [*CHOICES, *ZERO])
def test_every_choice_composes(choice):
    assert composed(choice).run == "demo"


def test_zero_stage_is_chosen_for_each_training():
    cfg = composed("deepspeed@finetune.deepspeed=zero1")
    assert cfg.finetune.deepspeed["zero_optimization"]["stage"] == 1
    assert cfg.pretrain.deepspeed["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        "pretrain.warmup_ratio=1.5",
        "finetune.betas=[0.9]",
        "data.finetune.held_out_fraction=1",
        "pretrain.pack_tokens=0",
    ],
)
def test_a_value_that_cannot_be_is_refused(wrong):
    with pytest.raises(Unusable):
        composed(wrong)


def test_a_setting_without_a_value_is_named():
    with pytest.raises(Unusable, match=r"model\.language_model has no value"):
        composed("model.language_model=???")
