import json

import pytest

from vlm.config import RootConfig, TrainConfig
from vlm.pipeline import artifact
from vlm.pipeline.forecast import Limits, forecast
from vlm.pipeline.predictions import comparison, expect, made_for, measured_seconds, read, write, write_sweep

GIB = 2**30
ROWS = '{"step": 1, "seconds_per_step": 3.0}\n{"step": 2, "seconds_per_step": 5.0}\n{"step": 2, "kind": "evaluation"}\n{"st'


@pytest.fixture
def begun(found, card, tmp_path):
    """A training that is under way."""
    folder = tmp_path / "03_pretrain.partial"
    folder.mkdir()
    expect(folder, found, forecast(found, card, Limits(), tmp_path, None), "key")
    (folder / "metrics.jsonl").write_text(ROWS)
    return folder


def test_stages_share_one_file(found, card, tmp_path):
    seen = forecast(found, card, Limits(), tmp_path, None)
    write(tmp_path, "03_pretrain", found, seen, "abc")
    write(tmp_path, "04_finetune", found, seen, "def")
    kept = read(tmp_path)
    assert {stage: one["made_for"] for stage, one in kept.items()} == {"03_pretrain": "abc", "04_finetune": "def"}
    assert kept["03_pretrain"]["forecast"]["bytes_needed"] == 30 * GIB
    write_sweep(tmp_path, "03_pretrain", [{"rows": 1}])
    assert json.loads((tmp_path / "preflight_sweep.json").read_text()) == {"03_pretrain": [{"rows": 1}]}


def test_seconds_are_those_that_the_same_settings_measured_on_the_same_machine(found, tmp_path, begun):
    assert measured_seconds(tmp_path, "03_pretrain", "card", found) == 4.0
    assert measured_seconds(tmp_path, "03_pretrain", "another card", found) is None
    assert measured_seconds(tmp_path, "03_pretrain", "card", found | {"ranks": 8}) is None
    assert measured_seconds(tmp_path, "04_finetune", "card", found) is None


def test_what_was_expected_is_held_against_what_came_out(begun, found):
    rows = {row["name"]: row for row in comparison(begun)}
    assert rows["time of a step"]["measured"] == 4.0
    assert rows["steps"] == {"name": "steps", "unit": "", "predicted": 1000, "measured": None}
    assert rows["memory of the first rank"] == {
        "name": "memory of the first rank", "unit": "GiB", "predicted": 30.0, "measured": None,
    }  # fmt: skip

    figures = {
        "step": 1000,
        "samples": 8000,
        "tokens": 10**6,
        "targets": 10**5,
        "trainable_parameters": 10,
        "memory_bytes": 29 * GIB,
    }
    (begun / artifact.RECORD).write_text(json.dumps({"figures": figures}))
    rows = {row["name"]: row for row in comparison(begun)}
    assert all(
        rows[name]["predicted"] == rows[name]["measured"]
        for name in ("steps", "samples", "tokens", "supervised tokens")
    )
    assert rows["time of all steps"]["measured"] == pytest.approx(4000 / 3600)
    assert rows["memory of the first rank"]["measured"] == 29.0
    assert comparison(begun.parent) == []


def test_the_hash_is_that_of_settings_machine_and_inputs():
    cfg = RootConfig(run="r", finetune=TrainConfig())
    one = made_for(cfg, "finetune", {"02_shard": "a"}, 4)
    assert one == made_for(cfg, "finetune", {"02_shard": "a"}, 4)
    others = {made_for(cfg, "finetune", {"02_shard": "b"}, 4), made_for(cfg, "finetune", {"02_shard": "a"}, 8)}
    cfg.finetune.runtime.rows_at_once = 9
    cfg_changed = made_for(cfg, "finetune", {"02_shard": "a"}, 4)
    cfg.finetune.runtime.rows_at_once, cfg.hardware.memory_gib = 4, 1.0
    assert len({one, *others, cfg_changed, made_for(cfg, "finetune", {"02_shard": "a"}, 4)}) == 5
