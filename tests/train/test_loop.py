import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlm.config import LoraConfig, Recompute, Schedule, Strategy
from vlm.data.index import Split
from vlm.errors import Unusable
from vlm.model.verify import check
from vlm.train import loop
from vlm.train.loop import rate_factor
from vlm.train.planning import plan_of
from vlm.train.run import train

from .conftest import weights_of

HERE = Path(__file__).parent


def losses(out: Path, key: str = "loss") -> list[float]:
    return [json.loads(line)[key] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run_here(tiny_model, tiny_shards):
    def run(cfg, out: Path, split: str = "finetune") -> Path:
        out.mkdir(exist_ok=True)
        train(cfg, 0, base=tiny_model, split=tiny_shards / split, out=out)
        return out

    return run


@pytest.mark.parametrize(
    "changes",
    [{"packing": False}, {"runtime": {"rows_at_once": 4}}, {"runtime": {"workers": 2}}, {"pack_images": 2}],
    ids=["unpacked", "four rows at once", "two workers", "few pictures a pack"],
)
def test_how_a_step_is_carried_out_does_not_change_its_loss_or_gradient(run_here, settings, tmp_path, changes):
    one = run_here(settings(), tmp_path / "one")
    other = run_here(settings(**changes), tmp_path / "other")
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    assert losses(other, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-4)


@pytest.mark.parametrize("zero", [1, 2])
def test_zero_stages_do_not_change_the_losses(run_here, settings, tmp_path, zero):
    assert losses(run_here(settings(zero=zero), tmp_path / "z")) == pytest.approx(
        losses(run_here(settings(), tmp_path / "0")), rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Strategy.lora, Strategy.qlora, Strategy.full], ids=lambda one: one.value)
def test_a_strategy_on_two_ranks_with_zero_2_resumes_bit_for_bit_and_exports_what_it_trained(
    on_ranks, settings, tiny_model, tmp_path, strategy
):
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    cfg = settings(strategy, zero=2, lora=LoraConfig(rank=128, alpha=256.0, dropout=0.05, targets=targets))
    unbroken = on_ranks(2, cfg, tmp_path / "unbroken")
    begun = tmp_path / "begun"
    shutil.copytree(unbroken / "checkpoints", begun / "checkpoints")
    shutil.rmtree(begun / "checkpoints/step_000006")  # stopped after step 4
    shutil.copy(unbroken / "metrics.jsonl", begun)
    on_ranks(2, cfg, begun)
    assert losses(begun) == losses(unbroken)
    assert weights_of(begun / "model") == weights_of(unbroken / "model")
    figures = check(begun, tiny_model, quantised=strategy is Strategy.qlora)["export_gate"]
    assert len(figures) == {Strategy.lora: 2, Strategy.qlora: 3, Strategy.full: 1}[strategy]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
def test_two_ranks_give_the_losses_of_one_and_go_on_from_its_checkpoint(run_here, on_ranks, settings, tmp_path, zero):
    one = run_here(settings(zero=zero), tmp_path / "one")
    two = on_ranks(2, settings(zero=zero), tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert losses(two, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-4)

    begun = tmp_path / "begun"
    shutil.copytree(one, begun)
    shutil.rmtree(begun / "checkpoints/step_000006")  # one rank got to step 4
    on_ranks(2, settings(zero=zero), begun)
    assert losses(begun) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_four_micro_batches_of_one_rank_two_of_two_and_one_of_four_are_the_same_steps(
    run_here, on_ranks, settings, tmp_path, zero
):
    """And a run that two ranks began goes on on one and on four."""
    cfg = settings(Strategy.full, zero, packing=False)
    two = on_ranks(2, cfg, tmp_path / "two")
    for ranks in (1, 4):
        unbroken, begun = tmp_path / f"unbroken_{ranks}", tmp_path / f"begun_{ranks}"
        shutil.copytree(two, begun)
        shutil.rmtree(begun / "checkpoints/step_000006")  # two ranks got to step 4
        for out in (unbroken, begun):
            run_here(cfg, out) if ranks == 1 else on_ranks(ranks, cfg, out)
            assert np.array_equal(np.load(out / "plan.npy"), np.load(two / "plan.npy"))
            assert losses(out, "samples") == losses(two, "samples")
            assert losses(out) == pytest.approx(losses(two), rel=1e-5)
            assert losses(out, "grad_norm") == pytest.approx(losses(two, "grad_norm"), rel=1e-4)


@pytest.mark.slow
def test_zero_3_on_two_ranks_gives_the_losses_of_one_rank_and_goes_on_there(run_here, on_ranks, settings, tmp_path):
    """Steps of two samples: at times a rank has no picture, or nothing at all."""
    small = {"strategy": Strategy.full, "samples_per_step": 2, "steps": 12}
    one = run_here(settings(zero=2, **small), tmp_path / "one")
    two = on_ranks(2, settings(zero=3, **small), tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert losses(two, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-4)
    for name, tensor in weights_in(one).items():
        if name.endswith("k_proj.bias"):
            continue  # softmax does not see it: its gradient is rounding, which AdamW scales up
        assert torch.allclose(weights_in(two)[name], tensor, rtol=1e-3, atol=1e-4), name

    shutil.rmtree(two / "checkpoints/step_000012")  # two ranks got to step 10
    assert losses(run_here(settings(zero=3, **small), two)) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_two_ranks_of_which_one_may_have_no_picture_run_fifty_steps(on_ranks, settings, tiny_shards, tmp_path, zero):
    split = tiny_shards / "finetune"
    cfg = settings(Strategy.full, zero=zero, samples_per_step=2, steps=50, runtime={"save_every": 1000, "keep": 1})
    plan = plan_of(cfg, 0, Split(split))
    shown = [[sum(plan.images[i] for i in pack) for pack in plan.packs(step, 2)] for step in range(50)]
    pictures = {tuple(images > 0 for images in step) for step in map(sorted, shown)}
    assert pictures >= {(False, True), (True, True)}
    out = on_ranks(2, cfg, tmp_path / "out")
    assert len(losses(out)) == 50


def weights_in(out: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in (out / "model").glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("recompute", [Recompute.selective, Recompute.full])
@pytest.mark.parametrize(("chosen", "zero"), [(Strategy.full, 0), (Strategy.full, 3), (Strategy.lora, 0)])
def test_recomputing_activations_changes_no_weight(run_here, settings, tmp_path, recompute, chosen, zero):
    plain = run_here(settings(chosen, zero), tmp_path / "plain")
    light = run_here(settings(chosen, zero, runtime={"recompute": recompute}), tmp_path / "light")
    assert losses(light) == losses(plain)
    assert weights_of(light / "model") == weights_of(plain / "model")


def skipping(monkeypatch, bad: dict[int, float]):
    """Multiply the loss of some steps, by their number from 1; return the list of all steps' outcomes."""
    take_step, nats_of, outcomes = loop.take_step, loop.nats_of, []

    def counted(*arguments):
        monkeypatch.setattr(loop, "nats_of", lambda *given: nats_of(*given) * bad.get(len(outcomes) + 1, 1.0))
        outcomes.append(take_step(*arguments))
        return outcomes[-1]

    monkeypatch.setattr(loop, "take_step", counted)
    return outcomes


@pytest.mark.parametrize(
    ("zero", "bad"), [(0, math.nan), (1, math.inf), (2, math.nan), (3, math.nan), (0, 50), (2, 50)]
)
def test_a_step_whose_loss_is_no_number_or_a_spike_is_skipped_and_counted(
    run_here, settings, tmp_path, monkeypatch, zero, bad
):
    outcomes = skipping(monkeypatch, {3: bad})
    out = run_here(settings(zero=zero, skip_above=10.0 if bad == 50 else None), tmp_path / "out")
    assert [step.updated for step in outcomes] == [True, True, False, True, True, True]
    assert losses(out, "skipped") == [0, 0, 1, 1, 1, 1]
    assert all(math.isfinite(step.loss) for step in outcomes[3:])
    assert outcomes[3].loss < 2 * outcomes[1].loss
    if bad != 50:
        assert losses(out)[2] is None

    assert (out / "loss.png").is_file()
    done = json.loads((out / "checkpoints/step_000006/progress.json").read_text())["progress"]
    assert (done["step"], done["skipped"], done["skipped_in_a_row"]) == (6, 1, 0)


def test_many_skipped_steps_in_a_row_end_the_run(run_here, settings, tmp_path, monkeypatch):
    skipping(monkeypatch, dict.fromkeys((3, 4, 5, 6), math.nan))
    with pytest.raises(Unusable, match="3 steps in a row were skipped up to step 5 .*: lower the learning rate"):
        run_here(settings(runtime={"max_skipped": 3}), tmp_path / "out")
    assert not (tmp_path / "out/model").exists()


def test_a_run_with_a_skipped_step_resumes_bit_for_bit(run_here, settings, tmp_path, monkeypatch):
    skipping(monkeypatch, {2: math.nan})
    out = run_here(settings(zero=1), tmp_path / "out")
    monkeypatch.undo()
    other = tmp_path / "other"
    shutil.copytree(out, other)
    shutil.rmtree(other / "checkpoints/step_000006")
    shutil.rmtree(other / "model")
    run_here(settings(zero=1), other)
    assert weights_of(other / "model") == weights_of(out / "model")
    assert losses(other) == losses(out)


def test_the_loss_of_every_source_is_in_the_metrics(settings, tiny_model, tiny_shards, tmp_path):
    split = tmp_path / "finetune"
    shutil.copytree(tiny_shards / "finetune", split)
    rows, manifest = np.load(split / "index.npy"), json.loads((split / "shards.json").read_text())
    rows["source"] = np.arange(len(rows)) % 8 != 0
    np.save(split / "index.npy", rows)
    (split / "shards.json").write_text(json.dumps(manifest | {"sources": ["few", "many"]}))
    out = tmp_path / "out"
    out.mkdir()
    cfg = settings(steps=None, epochs=1.0, samples_per_step=3)
    train(cfg, 0, base=tiny_model, split=split, out=out)
    order = np.load(out / "plan.npy")
    assert np.array_equal(order, plan_of(cfg, 0, Split(split)).order)
    rows_of = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    whole, few, many = zip(*((row["loss"], row.get("loss/few"), row.get("loss/many")) for row in rows_of), strict=True)
    assert None in few  # a step without a sample of that source
    for step, samples in enumerate(order.reshape(-1, 3)):
        of = [int(rows["targets"][samples][rows["source"][samples] == source].sum()) for source in (0, 1)]
        found = sum(count * loss for count, loss in zip(of, (few[step], many[step]), strict=True) if count)
        assert found / sum(of) == pytest.approx(whole[step], rel=1e-5)
        assert (few[step] is None) is (of[0] == 0)


def test_the_warm_up_is_a_share_of_the_steps_or_a_number_of_them(settings):
    assert settings(warmup_ratio=0.25).warmup(10) == 3
    assert settings(warmup_ratio=0.25, warmup_steps=7).warmup(10) == 7
    with pytest.raises(Unusable, match="warmup_steps=-1"):
        settings(warmup_steps=-1)


def test_text_without_pictures_trains_beside_pictures(run_here, settings, tmp_path):
    out = run_here(
        settings(Strategy.full, samples_per_step=1, steps=10), tmp_path / "out"
    )  # some steps have no picture
    assert len(losses(out)) == 10


def test_learning_rates_follow_the_formula():
    assert [rate_factor(step, 10, Schedule.linear, 2) for step in (0, 1, 2, 6, 9)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5, 0.125]
    )
    assert [rate_factor(step, 10, Schedule.cosine, 2) for step in (2, 6, 9)] == pytest.approx(
        [1.0, 0.5, 0.038060], abs=1e-5
    )
    assert rate_factor(9, 10, Schedule.constant, 0) == 1.0


def test_each_part_has_its_own_rate_in_the_metrics(run_here, settings, tmp_path):
    out = run_here(settings(), tmp_path / "out")
    factors = [rate_factor(step, 6, Schedule.cosine, 2) for step in range(6)]
    assert losses(out, "lr/projector") == pytest.approx([1e-2 * factor for factor in factors])
    assert losses(out, "lr/language_model") == pytest.approx([2e-3 * factor for factor in factors])


def test_training_learns(run_here, settings, tmp_path):
    found = losses(run_here(settings(steps=30, samples_per_step=8), tmp_path / "out"))
    assert sum(found[-5:]) < 0.5 * sum(found[:5])
