import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from vlm.config import EvaluationConfig, LearningRates, Strategy, TaskConfig
from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.data.pixels import Preprocessing, decode, normalise, prepare
from vlm.errors import Unusable
from vlm.eval.suite import Suite
from vlm.model.forward import PackedLoss
from vlm.train import loop
from vlm.train import run as training
from vlm.train.run import train

from .conftest import weights_of

QUESTIONS = {"answers": 5, "tasks": {"questions": TaskConfig(max_new_tokens=3, blind=[])}}


KEYS = {"loss": "held_out/loss", "questions": "questions/accuracy"}
SIGN = {"loss": 1, "questions": -1}


def ends(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return next(tensor for full, tensor in weights.items() if full.endswith(name))


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing catches it."""


@pytest.fixture(scope="module")
def run(tiny_model, tiny_shards):
    def go(cfg, out: Path) -> Path:
        out.mkdir(exist_ok=True)
        suite = Suite.of(cfg.evaluation, 0, base=tiny_model, shards=tiny_shards, out=out)
        train(cfg, 0, base=tiny_model, split=tiny_shards / "finetune", out=out, ask=suite)
        return out

    return go


def rows(out: Path, kind: str | None = None) -> list[dict]:
    """Return the rows of a kind without what depends on the clock."""
    timed = {
        "seconds",
        "tokens_per_second",
        "samples_per_second",
        "seconds_per_step",
        "data_wait_share",
        "memory_bytes",
        "tflops",
    }
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in timed} for row in found if row.get("kind") == kind]


def looks(**changes) -> EvaluationConfig:
    return EvaluationConfig(**{"every": 1, "samples": 12} | changes)


@pytest.mark.parametrize("zero", [0, 2])
def test_looking_changes_no_bit_of_the_training(run, settings, tmp_path, zero):
    without = run(settings(Strategy.lora, zero), tmp_path / "without")  # with dropout
    watched = run(settings(Strategy.lora, zero, evaluation=looks(**QUESTIONS, keep_best=2)), tmp_path / "watched")
    assert weights_of(watched / "model") == weights_of(without / "model")
    assert rows(watched) == rows(without)
    assert [row["step"] for row in rows(watched, "evaluation")] == [1, 2, 3, 4, 5, 6]


def test_the_held_out_loss_is_that_of_every_token_of_the_split(run, settings, tiny_shards, tmp_path):
    cfg = settings(Strategy.full, evaluation=looks(every=6, samples=None), runtime={"rows_at_once": 3})
    out = run(cfg, tmp_path / "out")
    (row,) = rows(out, "evaluation")
    model = PackedLoss(LlavaForConditionalGeneration.from_pretrained(out / "model")).eval()
    chat, how = Chat.of_model(out / "model"), Preprocessing.load(out / "model")
    split, nats, targets = Split(tiny_shards / "finetune_held_out"), 0.0, 0
    for number in range(len(split)):
        stored = split.read(number)
        encoded = chat.encode(stored.sample.turns, len(stored.pictures), split.form, 256)
        pixels = [prepare(decode(data), how) for data in stored.pictures]
        pixels = torch.stack(pixels) if pixels else torch.zeros(0, 3, how.size, how.size).byte()
        labels = torch.from_numpy(np.where(encoded.is_target, encoded.ids, -100)).long()
        with torch.no_grad():
            ids, positions = torch.from_numpy(encoded.ids).long(), torch.arange(len(encoded.ids))
            nats += model(ids[None], labels[None], positions[None], normalise(pixels, how, torch.float32)).item()
        targets += int(encoded.is_target.sum())
    assert row["held_out/loss"] == pytest.approx(nats / targets, rel=1e-5)


def test_several_sources_have_a_loss_each(settings, tiny_model, tiny_shards, tmp_path):
    import shutil

    shutil.copytree(tiny_shards, tmp_path / "shards")
    held_out = tmp_path / "shards/finetune_held_out"
    index = np.load(held_out / "index.npy")
    index["source"] = np.arange(len(index)) % 2
    np.save(held_out / "index.npy", index)
    manifest = json.loads((held_out / "shards.json").read_text())
    (held_out / "shards.json").write_text(json.dumps(manifest | {"sources": ["even", "odd"]}))
    figures = train(
        settings(evaluation=looks(every=6)), 0, base=tiny_model, split=tmp_path / "shards/finetune", out=tmp_path
    )
    even, odd = (figures[f"held_out/loss/{name}"] for name in ("even", "odd"))
    assert min(even, odd) < figures["held_out/loss"] < max(even, odd)


@pytest.mark.parametrize("metric", ["loss", "questions"])
def test_a_run_killed_at_every_step_keeps_and_stops_like_an_unbroken_one(run, settings, tmp_path, monkeypatch, metric):
    asked = QUESTIONS if metric == "questions" else {}
    cfg = settings(
        steps=20,
        lr=LearningRates(projector=0.1, language_model=0.05),  # so high that the held-out loss soon rises
        evaluation=looks(**asked, metric=metric, keep_best=2, patience=3),
        runtime={"save_every": 3, "keep": 1},
    )
    unbroken = run(cfg, tmp_path / "unbroken")
    take_step, left = loop.take_step, [2]

    def mortal(*arguments):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return take_step(*arguments)

    monkeypatch.setattr(loop, "take_step", mortal)
    lives = 0
    while not (tmp_path / "killed/model").exists():
        left[0] = 2 + lives % 3
        lives += 1
        try:
            run(cfg, tmp_path / "killed")
        except Killed:
            continue
    killed = tmp_path / "killed"
    assert lives > 1
    assert 4 <= rows(unbroken, "evaluation")[-1]["step"] < 20, "the training was to stop early"
    assert rows(killed, "evaluation") == rows(unbroken, "evaluation")
    assert rows(killed) == rows(unbroken)
    assert weights_of(killed / "model") == weights_of(unbroken / "model")
    kept = {path.name for path in (unbroken / "best").glob("step_*")}
    assert len(kept) == 2
    assert {path.name for path in (killed / "best").glob("step_*")} == kept
    best = min(rows(unbroken, "evaluation"), key=lambda row: (row[KEYS[metric]] * SIGN[metric], row["step"]))["step"]
    trained = load_file(unbroken / f"best/step_{best:06d}/weights.safetensors")
    exported = load_file(unbroken / "model/model-multi_modal_projector-00001.safetensors")
    for part in ("linear_1.weight", "linear_2.bias"):  # of the best look, not of the last
        assert torch.equal(ends(trained, part), ends(exported, part))
    for name in kept:
        assert weights_of(killed / "best" / name) == weights_of(unbroken / "best" / name)


def test_a_run_killed_between_a_checkpoint_and_its_keeping_keeps_it(run, settings, tmp_path, monkeypatch):
    cfg = settings(evaluation=looks(every=2, keep_best=3))
    unbroken = run(cfg, tmp_path / "unbroken")
    from vlm.train import evaluate

    keep_best = evaluate.keep_best

    def mortal(checkpoints: Path, best: Path, steps: list[int]) -> None:
        if 4 in steps:
            raise Killed
        keep_best(checkpoints, best, steps)

    monkeypatch.setattr(evaluate, "keep_best", mortal)
    with pytest.raises(Killed):
        run(cfg, tmp_path / "killed")
    monkeypatch.setattr(evaluate, "keep_best", keep_best)
    killed = run(cfg, tmp_path / "killed")
    names = {path.name for path in (killed / "best").iterdir()}
    assert (
        names == {path.name for path in (unbroken / "best").iterdir()} == {"step_000002", "step_000004", "step_000006"}
    )


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({"every": 4}, [4, 8, 9]), ({"every": None, "each_epoch": True}, [6, 9]), ({"every": 100}, [9])],
)
def test_looks_come_every_so_often_at_each_epoch_and_at_the_end(run, settings, tmp_path, changes, steps):
    out = run(settings(steps=9, evaluation=looks(**changes)), tmp_path / "out")  # 24 samples, 4 a step
    assert [row["step"] for row in rows(out, "evaluation")] == steps


@pytest.mark.slow
def test_two_ranks_under_zero_2_see_the_losses_and_answers_of_one(run, on_ranks, settings, tmp_path):
    cfg = settings(zero=2, evaluation=looks(every=2, samples=11, **QUESTIONS, patience=3))
    one = run(cfg, tmp_path / "one")
    two = on_ranks(2, cfg, tmp_path / "two")
    for seen, expected in zip(rows(two, "evaluation"), rows(one, "evaluation"), strict=True):
        assert seen.pop("kind") == expected.pop("kind")
        assert seen == pytest.approx(expected, rel=1e-5)
    for name in ("step_000002.json", "step_000006.json"):
        assert (two / "samples" / name).read_text() == (one / "samples" / name).read_text()


def test_a_split_without_held_out_samples_is_refused_before_the_model_is_loaded(
    settings, tiny_model, tiny_shards, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        training.LlavaForConditionalGeneration, "from_pretrained", lambda *a, **k: pytest.fail("loaded")
    )
    with pytest.raises(Unusable, match="pretrain_held_out holds no shards"):
        train(settings(evaluation=looks()), 0, base=tiny_model, split=tiny_shards / "pretrain", out=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"metric": "accuracy"}, "neither loss nor one of questions"),
        ({"metric": "questions"}, "set evaluation.answers"),
        ({"every": 0}, "every=0 is not at least 1"),
        ({"every": None, "patience": 3}, "need looks"),
    ],
)
def test_looks_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(Unusable, match=said):
        looks(**wrong)
