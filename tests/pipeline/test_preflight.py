import json
from pathlib import Path

import pytest

from vlm.config import ClusterConfig, RootConfig
from vlm.errors import Unusable
from vlm.pipeline import preflight
from vlm.pipeline.preflight import admit, expect, limits_of, machine_of, show, total
from vlm.pipeline.stage import Stage


@pytest.fixture
def cfg(card, tmp_path) -> RootConfig:
    return RootConfig(run="r", runs=str(tmp_path), hardware=card)


@pytest.fixture
def calls() -> list:
    return []


@pytest.fixture
def stage(found, calls) -> Stage:
    def estimate(cfg, inputs, machine):
        calls.append(machine)
        return found

    return Stage("04_finetune.py", ("02_shard",), ("seed", "finetune"), lambda *_: None, estimate=estimate)


def test_what_does_not_fit_is_shown_kept_and_refused(stage, cfg, tmp_path, capsys):
    with pytest.raises(Unusable, match="rows_at_once=2 fits"):
        show(stage, cfg, tmp_path, 4)
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert json.loads((tmp_path / "preflight.json").read_text())["04_finetune"]["ranks"] == 4
    assert "IT DOES NOT ALL FIT" in total(cfg, tmp_path)


def test_a_submission_is_looked_at_once_for_the_same_settings(stage, cfg, tmp_path, calls, found):
    found["memory"] = {"weights": 1}
    admit(stage, cfg, tmp_path, 4)
    admit(stage, cfg, tmp_path, 4)
    assert len(calls) == 1
    admit(stage, cfg, tmp_path, 8)
    cfg.finetune.runtime.rows_at_once = 1
    admit(stage, cfg, tmp_path, 8)
    assert len(calls) == 3


def test_a_submission_that_cannot_fit_is_refused_also_the_second_time_unless_asked(stage, cfg, tmp_path, capsys, calls):
    for _ in range(2):
        with pytest.raises(Unusable, match="what breaks it is activations"):
            admit(stage, cfg, tmp_path, 4)
    cfg.preflight = "warn"
    admit(stage, cfg, tmp_path, 4)
    assert "WARNING: it needs 30.0 GiB" in capsys.readouterr().out
    cfg.preflight = "off"
    admit(stage, cfg, tmp_path, 5)
    assert len(calls) == 1


def test_a_machine_without_gpu_and_a_stage_that_trains_nothing_are_not_looked_at(stage, cfg, tmp_path, calls):
    cfg.hardware.is_gpu = False
    admit(stage, cfg, tmp_path, 4)
    admit(Stage("02_shard.py", (), ("seed", "data"), lambda *_: None), cfg, tmp_path, 4)
    assert not calls and not (tmp_path / "preflight.json").exists()


def test_what_is_expected_of_a_training_is_written_once_and_stops_none(stage, cfg, tmp_path, found, calls, capsys):
    expect(stage, cfg, {}, tmp_path, "key")
    first = (tmp_path / "preflight.json").read_text()
    assert "choices" not in json.loads(first) and calls[0].is_gpu is None
    found["keep"] = 99
    expect(stage, cfg, {}, tmp_path, "key")
    assert (tmp_path / "preflight.json").read_text() == first
    expect(stage, cfg, {}, tmp_path, "another key")
    assert json.loads((tmp_path / "preflight.json").read_text())["keep"] == 99

    def fails(*_):
        raise RuntimeError("a model of a new kind")

    other = Stage("04_finetune.py", (), ("seed", "finetune"), lambda *_: None, estimate=fails)
    (tmp_path / "preflight.json").unlink()
    expect(other, cfg, {}, tmp_path, "key")
    assert "no estimate of this training: RuntimeError: a model of a new kind" in capsys.readouterr().out


def test_limits_are_the_cluster_s(cfg):
    assert limits_of(cfg).minutes is None
    cfg.cluster = ClusterConfig(nodes=2, minutes=90, signal_delay_seconds=30, max_requeues=5)
    limits = limits_of(cfg)
    assert (limits.nodes, limits.minutes, limits.signal_seconds, limits.requeues) == (2, 90, 30, 5)


def test_every_deepspeed_choice_is_compared(cfg):
    zeros = machine_of(cfg, 4).zeros
    assert zeros["zero3"]["zero_optimization"]["stage"] == 3
    assert {path.stem for path in (Path(preflight.PROJECT) / "conf/deepspeed").glob("*.yaml")} == set(zeros)
