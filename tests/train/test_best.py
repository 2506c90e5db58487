import math

import pytest

from vlm.train.best import Look, best_steps, is_over, keep_best, looks_of, over_fits


def looks(*losses: float, training: tuple[float, ...] = ()) -> list[Look]:
    trained = training or (None,) * len(losses)
    return [Look(10 * i, loss, loss, mean) for i, (loss, mean) in enumerate(zip(losses, trained, strict=True), start=1)]


def test_rows_become_looks_with_the_mean_training_loss_since_the_look_before():
    rows = [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "kind": "evaluation", "held_out/loss": 3.5},  # before the task was asked: does not count
        {"step": 3, "loss": 3.0},
        {"step": 3, "kind": "evaluation", "held_out/loss": 2.5, "q/accuracy": 40.0},
        {"step": 4, "kind": "evaluation", "held_out/loss": math.nan, "q/accuracy": math.nan},
    ]
    by_loss = looks_of(rows, "held_out/loss", "held_out/loss", less_is_better=True)
    assert [(look.step, look.badness, look.training) for look in by_loss] == [
        (2, 3.5, 3.0),
        (3, 2.5, 3.0),
        (4, math.inf, None),
    ]
    by_task = looks_of(rows, "q/accuracy", "held_out/loss", less_is_better=False)
    assert [(look.step, look.badness) for look in by_task] == [(3, -40.0), (4, math.inf)]


def test_the_best_come_first_and_of_equal_ones_the_earlier():
    assert best_steps(looks(3.0, 1.0, 2.0, 1.0), 3) == [20, 40, 30]
    assert best_steps(looks(3.0), 0) == []


@pytest.mark.parametrize(
    ("losses", "patience", "over"),
    [
        ((3.0, 2.0, 2.5), 2, False),
        ((3.0, 2.0, 2.5, 2.2), 2, True),
        ((3.0, 2.0, 2.0, 2.0), 2, True),  # as good is not better
        ((3.0, 2.0, 2.5, 1.9), 2, False),
        ((1.0, 2.0, 3.0), None, False),
        ((), 1, False),
    ],
)
def test_patience_ends_after_so_many_looks_without_a_new_best(losses, patience, over):
    assert is_over(looks(*losses), patience) is over


@pytest.mark.parametrize(
    ("held_out", "training", "warned"),
    [
        ((2.0, 2.1, 2.2), (1.5, 1.2, 1.0), True),
        ((2.0, 2.1, 2.2), (1.0, 1.2, 1.5), False),  # both rise: not over-fitting
        ((2.0, 1.9, 2.2), (1.5, 1.2, 1.0), False),  # one rise may be chance
        ((2.0, 2.1), (1.5, 1.2), False),
        ((2.0, 2.1, 2.2), (None, None, None), False),
    ],
)
def test_it_warns_when_the_held_out_loss_rises_and_the_training_loss_falls(held_out, training, warned):
    assert over_fits(looks(*held_out, training=training)) is warned


def test_the_best_checkpoints_are_kept_whatever_becomes_of_the_others(tmp_path):
    checkpoints, best = tmp_path / "checkpoints", tmp_path / "best"
    for step in (10, 20):
        (checkpoints / f"step_{step:06d}").mkdir(parents=True)
        (checkpoints / f"step_{step:06d}" / "weights.safetensors").write_bytes(b"%d" % step)
    keep_best(checkpoints, best, [10])
    (checkpoints / "step_000010/weights.safetensors").unlink()
    (checkpoints / "step_000010").rmdir()
    keep_best(checkpoints, best, [20, 10, 30])  # 30 is not saved yet
    assert {path.name for path in best.iterdir()} == {"step_000010", "step_000020"}
    assert (best / "step_000020/weights.safetensors").samefile(checkpoints / "step_000020/weights.safetensors")
    keep_best(checkpoints, best, [20])
    assert {path.name for path in best.iterdir()} == {"step_000020"}
