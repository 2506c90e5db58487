import json
import resource
import shutil
import time
from itertools import product
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from vlm.config import Schedule, Strategy, TrainRuntime
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
    checkpoints = checkpoint.Checkpoints(tmp_path, [], None, {}, TrainRuntime(keep=2))
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


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"samples_per_step": 2, "steps": 12}, "samples_per_step=4, not 2"),
        ({"schedule": Schedule.linear}, "schedule=cosine, not linear"),
        ({"steps": 8}, "is of a run of 6 steps, not 8: add extend=true"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_the_difference_named(run, settings, tmp_path, changes, difference):
    run(settings(), tmp_path / "out")
    with pytest.raises(Unusable, match=difference):
        run(settings(**changes), tmp_path / "out")


def test_a_run_is_extended_when_asked_to_be(run, settings, tmp_path):
    constant = {"schedule": Schedule.constant, "warmup_ratio": 0.0}
    unbroken = run(settings(steps=8, **constant), tmp_path / "unbroken")
    run(settings(steps=6, **constant), tmp_path / "grown")
    grown = run(settings(steps=8, **constant, runtime={"extend": True}), tmp_path / "grown")
    assert metrics(grown) == metrics(unbroken)
    assert weights_of(grown / "model") == weights_of(unbroken / "model")


def test_a_checkpoint_on_another_base_is_refused(run, settings, tiny_model, tiny_shards, tmp_path):
    out = run(settings(), tmp_path / "out")
    other = tmp_path / "model"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model-vision_tower-00001.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, other / "model-vision_tower-00001.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unusable, match="was trained with base="):
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
    (tmp_path / "out/checkpoints/step_000003.tmp").mkdir(parents=True)  # a life that saved at other steps was killed
    out = run(settings(Strategy.projector), tmp_path / "out")
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step_000004", "step_000006"]
    names = load_file(out / "checkpoints/step_000006/weights.safetensors")
    assert names and all("multi_modal_projector" in name for name in names)


def test_a_full_disk_while_saving_leaves_the_last_checkpoint(run, settings, tmp_path, monkeypatch):
    unbroken = run(settings(), tmp_path / "unbroken")
    save_file, saved = checkpoint.save_file, []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_disk_that_fills(tensors, path):
        saved.append(path)
        if len(saved) == 4:  # the moments of the second checkpoint
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", on_a_disk_that_fills)
    try:
        with pytest.raises(Unusable, match="cannot save step 4 .*free some space; the checkpoint before it stands"):
            run(settings(), tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "full/checkpoints").iterdir()] == ["step_000002"]
    assert weights_of(run(settings(), tmp_path / "full") / "model") == weights_of(unbroken / "model")


def test_training_goes_on_while_a_checkpoint_is_written(run, settings, tmp_path, monkeypatch):
    """And what is written is the state of its own step."""
    unbroken = run(settings(runtime={"keep": 9}), tmp_path / "unbroken")
    save_file, take_step, done, waited = checkpoint.save_file, loop.take_step, [], []

    def slow(tensors, path):
        """Begin to write when the next step is over; the last one has none after it."""
        before = len(done)
        for _ in range(6000):
            if len(done) > before or len(done) == 6:
                break
            time.sleep(0.01)
        else:
            raise AssertionError("training waits for the disk")
        waited.append(len(done) > before)
        save_file(tensors, path)

    def counted(*arguments):
        done.append(take_step(*arguments))
        return done[-1]

    monkeypatch.setattr(checkpoint, "save_file", slow)
    monkeypatch.setattr(loop, "take_step", counted)
    out = run(settings(runtime={"keep": 9}), tmp_path / "out")
    assert any(waited)
    for step in (2, 4, 6):
        for name in checkpoint.FILES:
            one, other = (folder / f"checkpoints/step_{step:06d}" / name for folder in (out, unbroken))
            assert one.read_bytes() == other.read_bytes()


def test_checkpoints_are_saved_by_the_clock_too_and_every_so_many_steps_kept(run, settings, tmp_path, monkeypatch):
    cfg = settings(runtime={"save_every": 100, "save_minutes": 0.0, "keep": 1, "keep_every": 2})
    out = run(cfg, tmp_path / "out")
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == [
        "step_000002",
        "step_000004",
        "step_000006",
    ]


def test_a_damaged_newer_checkpoint_does_not_push_out_a_whole_one(run, settings, tmp_path):
    cfg = settings(runtime={"keep": 1, "save_every": 1, "keep_every": 3})
    out = run(cfg, tmp_path / "out")
    victim = out / "checkpoints/step_000006" / checkpoint.WEIGHTS
    victim.write_bytes(victim.read_bytes()[:-1])
    seen = []

    class Spy(checkpoint.Checkpoints):
        def _prune(self, newest):
            super()._prune(newest)
            seen.append(sorted(path.name for path in self.folder.iterdir()))

    from vlm.train import run as training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Checkpoints", Spy)
        run(cfg, out)
    assert seen == [
        ["step_000003", "step_000004"],
        ["step_000003", "step_000005"],
        ["step_000003", "step_000006"],
    ]


EVERYWHERE = [[1, None], [2, None], [2, "weights.safetensors"], [3, None], [3, "optimizer.safetensors"]]
EVERYWHERE += [[4, None], [4, "progress.json"], [5, None], [5, "COMPLETE"], [6, None], [6, "weights.safetensors"]]


@pytest.mark.slow
@pytest.mark.parametrize(  # every value of workers, packing, dropout, accumulation, ranks and ZeRO; not every pair
    ("ranks", "zero", "strategy", "changes", "runtime"),
    [
        (1, 0, Strategy.lora, {"samples_per_step": 8}, {"workers": 2, "rows_at_once": 4}),
        (1, 1, Strategy.freeze_vision, {"packing": False}, {}),
        (2, 2, Strategy.lora, {"packing": False, "samples_per_step": 8}, {}),
        (2, 0, Strategy.freeze_vision, {}, {"workers": 2}),
        (2, 1, Strategy.lora, {"samples_per_step": 8}, {"rows_at_once": 4}),
    ],
    ids=["one rank, 0", "one rank, 1", "two ranks, 2", "two ranks, 0", "two ranks, 1"],
)
def test_a_run_killed_at_every_step_and_in_every_file_ends_like_an_unbroken_one(
    forked, settings, tiny_model, tiny_shards, tmp_path, ranks, zero, strategy, changes, runtime
):
    """With 8 samples a step of 24 the run has two epochs; with one row at once it accumulates."""
    cfg = settings(strategy, zero, **changes, runtime={"save_every": 1} | runtime)
    (tmp_path / "settings.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    given = [tmp_path / "settings.yaml", tiny_model, tiny_shards / "finetune"]
    script = Path(__file__).with_name("lives.py")
    for out, kills in (("unbroken", []), ("killed", EVERYWHERE)):
        status, said = forked.start([script, *given, tmp_path / out, ranks, json.dumps(kills)]).wait()
        assert status == 0, said[-3000:]
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    assert metrics(killed) == metrics(unbroken)
    assert weights_of(killed / "model") == weights_of(unbroken / "model")


def test_zero_stage_may_change_in_mid_run(run, settings, tmp_path):
    unbroken = run(settings(), tmp_path / "unbroken")
    other = tmp_path / "other"
    shutil.copytree(unbroken, other)
    shutil.rmtree(other / "checkpoints/step_000006")
    run(settings(zero=2), other)
    assert [line[1] for line in metrics(other)] == pytest.approx([line[1] for line in metrics(unbroken)], rel=1e-5)
