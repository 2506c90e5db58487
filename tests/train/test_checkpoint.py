import json
import shutil
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vlm.config import Strategy
from vlm.errors import Unusable
from vlm.train import checkpoint, loop
from vlm.train.run import train

from .conftest import weights_of


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing catches it."""


@pytest.fixture(scope="module")
def run(tiny_model, tiny_shards):
    def go(cfg, out: Path) -> Path:
        out.mkdir(exist_ok=True)
        train(cfg, 0, base=tiny_model, split=tiny_shards / "finetune", out=out)
        return out

    return go


def metrics(out: Path) -> list[tuple]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["grad_norm"], line["samples"]) for line in lines]


@pytest.mark.parametrize(
    ("strategy", "zero"),
    [*product((Strategy.freeze_vision, Strategy.lora), (0, 1, 2)), (Strategy.qlora, 0), (Strategy.qlora, 2)],
)
def test_a_run_killed_at_every_step_ends_like_an_unbroken_one_bit_for_bit(
    run, settings, tmp_path, monkeypatch, strategy, zero
):
    cfg = settings(strategy, zero)
    unbroken = run(cfg, tmp_path / "unbroken")
    take_step = loop.take_step
    for lives in range(1, 4):
        left = [lives]

        def mortal(*arguments, left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return take_step(*arguments)

        monkeypatch.setattr(loop, "take_step", mortal)
        with pytest.raises(Killed):
            run(cfg, tmp_path / "killed")
    monkeypatch.setattr(loop, "take_step", take_step)
    killed = run(cfg, tmp_path / "killed")
    assert metrics(killed) == metrics(unbroken)
    assert weights_of(killed / "model") == weights_of(unbroken / "model")


@pytest.mark.parametrize("at", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.PROGRESS, checkpoint.COMPLETE])
def test_a_run_killed_while_saving_goes_on_from_the_checkpoint_before(run, settings, tmp_path, monkeypatch, at):
    unbroken = run(settings(), tmp_path / "unbroken")
    sync = checkpoint.sync

    def mortal(path: Path) -> None:
        if path.name == at and path.parent.name == "step_000004.tmp":
            path.write_bytes(path.read_bytes()[:10])
            raise Killed
        sync(path)

    monkeypatch.setattr(checkpoint, "sync", mortal)
    with pytest.raises(Killed):
        run(settings(), tmp_path / "killed")
    monkeypatch.setattr(checkpoint, "sync", sync)
    killed = run(settings(), tmp_path / "killed")
    assert metrics(killed) == metrics(unbroken)
    assert weights_of(killed / "model") == weights_of(unbroken / "model")


@pytest.mark.parametrize("name", [*checkpoint.FILES, checkpoint.COMPLETE])
@pytest.mark.parametrize("damage", ["truncated", "bit-flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, name, damage):
    for step in (2, 4):
        folder = tmp_path / f"step_{step:06d}"
        folder.mkdir()
        for file in checkpoint.FILES:
            (folder / file).write_bytes(b"0123456789" * 10)
        manifest = {f: {"bytes": 100, "sha256": checkpoint.sha256(folder / f)} for f in checkpoint.FILES}
        (folder / checkpoint.COMPLETE).write_text(json.dumps(manifest))
    checkpoints = checkpoint.Checkpoints(tmp_path, [], "plan", keep=2, base="base")
    assert checkpoints.newest().name == "step_000004"

    victim = tmp_path / "step_000004" / name
    data = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data[:50] if damage == "truncated" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert checkpoints.newest().name == "step_000002"

    shutil.rmtree(tmp_path / "step_000002")
    with pytest.raises(Unusable, match="no checkpoint in .* is whole"):
        checkpoints.newest()


def test_a_checkpoint_of_another_plan_is_refused(run, settings, tmp_path):
    run(settings(), tmp_path / "out")
    with pytest.raises(Unusable, match="another plan"):
        run(settings(samples_per_step=2, steps=12), tmp_path / "out")


def test_a_checkpoint_on_another_base_is_refused(run, settings, tiny_model, tiny_shards, tmp_path):
    out = run(settings(), tmp_path / "out")
    other = tmp_path / "model"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model-vision_tower-00001.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, other / "model-vision_tower-00001.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unusable, match="trained on another base model"):
        train(settings(), 0, base=other, split=tiny_shards / "finetune", out=out)


def test_the_record_of_an_artifact_saves_hashing_its_weights(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    hashed = checkpoint.base_hash(tmp_path / "model")
    files = {f"model/{file.name}": checkpoint.sha256(file) for file in (tmp_path / "model").iterdir()}
    (tmp_path / "artifact.json").write_text(json.dumps({"sha256": files}))
    for file in (tmp_path / "model").glob("*.safetensors"):
        file.write_bytes(b"not read")
    assert checkpoint.base_hash(tmp_path / "model") == hashed


def test_only_the_newest_are_kept_and_they_hold_what_trains_alone(run, settings, tmp_path):
    out = run(settings(Strategy.projector), tmp_path / "out")
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step_000004", "step_000006"]
    names = load_file(out / "checkpoints/step_000006/weights.safetensors")
    assert names and all("multi_modal_projector" in name for name in names)


def test_zero_stage_may_change_in_mid_run(run, settings, tmp_path):
    unbroken = run(settings(), tmp_path / "unbroken")
    other = tmp_path / "other"
    shutil.copytree(unbroken, other)
    shutil.rmtree(other / "checkpoints/step_000006")
    run(settings(zero=2), other)
    assert [line[1] for line in metrics(other)] == pytest.approx([line[1] for line in metrics(unbroken)], rel=1e-5)
