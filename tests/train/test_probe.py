import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vlm.config import Strategy
from vlm.data.index import Split
from vlm.errors import Unusable
from vlm.model.forward import PackedLoss
from vlm.train import run as training
from vlm.train.planning import plan_of
from vlm.train.probe import pair_of
from vlm.train.run import train


def test_two_samples_with_pictures_that_fit_together_are_taken(settings, tiny_shards):
    plan = plan_of(settings(samples_per_step=20), 0, Split(tiny_shards / "finetune"))
    first, second = pair_of(plan)
    assert first != second
    assert plan.images[[first, second]].min() > 0
    assert pair_of(replace(plan, packing=False)) is None
    assert pair_of(replace(plan, pack_images=1)) is None
    assert pair_of(replace(plan, order=np.array([3]))) is None


def test_a_model_whose_samples_see_each_other_is_refused_before_the_first_step(
    settings, tiny_model, tiny_shards, tmp_path, monkeypatch
):
    honest = PackedLoss.hidden_states

    def one_run_of_positions(self, input_ids, position_ids, pixel_values):
        return honest(self, input_ids, torch.arange(input_ids.shape[1]).expand_as(position_ids), pixel_values)

    monkeypatch.setattr(PackedLoss, "hidden_states", one_run_of_positions)
    with pytest.raises(Unusable, match="samples of a pack see each other"):
        train(settings(), 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_probe_changes_nothing_of_the_training(settings, tiny_model, tiny_shards, tmp_path, monkeypatch):
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(training, "check_isolation", lambda *_: None)
        (tmp_path / name).mkdir()
        cfg = settings(Strategy.lora)  # with dropout
        train(cfg, 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path / name)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("with", "without")
    ]
    assert losses[0] == losses[1]
