import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vlm.config import LoraConfig, Schedule, Strategy
from vlm.model.verify import check
from vlm.train.loop import rate_factor
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


@pytest.fixture
def on_two_ranks(tiny_model, tiny_shards, tmp_path):
    def run(cfg, out: Path) -> Path:
        out.mkdir(exist_ok=True)
        (tmp_path / "settings.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
        arguments = [str(tmp_path / "settings.yaml"), str(tiny_model), str(tiny_shards / "finetune"), str(out)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*launcher, str(HERE / "two_ranks.py"), *arguments], check=True, capture_output=True)
        return out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Strategy.lora, Strategy.qlora, Strategy.full], ids=lambda one: one.value)
def test_a_strategy_on_two_ranks_with_zero_2_resumes_bit_for_bit_and_exports_what_it_trained(
    on_two_ranks, settings, tiny_model, tmp_path, strategy
):
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    cfg = settings(strategy, zero=2, lora=LoraConfig(rank=128, alpha=256.0, dropout=0.05, targets=targets))
    unbroken = on_two_ranks(cfg, tmp_path / "unbroken")
    begun = tmp_path / "begun"
    shutil.copytree(unbroken / "checkpoints", begun / "checkpoints")
    shutil.rmtree(begun / "checkpoints/step_000006")  # stopped after step 4
    shutil.copy(unbroken / "metrics.jsonl", begun)
    on_two_ranks(cfg, begun)
    assert losses(begun) == losses(unbroken)
    assert weights_of(begun / "model") == weights_of(unbroken / "model")
    figures = check(begun, tiny_model, quantised=strategy is Strategy.qlora)["export_gate"]
    assert len(figures) == {Strategy.lora: 2, Strategy.qlora: 3, Strategy.full: 1}[strategy]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
def test_two_ranks_give_the_losses_of_one_and_go_on_from_its_checkpoint(
    run_here, on_two_ranks, settings, tmp_path, zero
):
    one = run_here(settings(zero=zero), tmp_path / "one")
    two = on_two_ranks(settings(zero=zero), tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert losses(two, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-4)

    begun = tmp_path / "begun"
    shutil.copytree(one, begun)
    shutil.rmtree(begun / "checkpoints/step_000006")  # one rank got to step 4
    assert losses(on_two_ranks(settings(zero=zero), begun)) == pytest.approx(losses(one), rel=1e-5)


def test_text_without_pictures_trains_beside_pictures(run_here, settings, tmp_path):
    out = run_here(
        settings(Strategy.full, samples_per_step=1, steps=10), tmp_path / "out"
    )  # some steps have no picture
    assert len(losses(out)) == 10


def test_learning_rates_follow_the_formula():
    assert [rate_factor(step, 10, Schedule.linear, 0.2) for step in (0, 1, 2, 6, 9)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5, 0.125]
    )
    assert [rate_factor(step, 10, Schedule.cosine, 0.2) for step in (2, 6, 9)] == pytest.approx(
        [1.0, 0.5, 0.038060], abs=1e-5
    )
    assert rate_factor(9, 10, Schedule.constant, 0.0) == 1.0


def test_each_part_has_its_own_rate_in_the_metrics(run_here, settings, tmp_path):
    out = run_here(settings(), tmp_path / "out")
    factors = [rate_factor(step, 6, Schedule.cosine, 0.2) for step in range(6)]
    assert losses(out, "lr/projector") == pytest.approx([1e-2 * factor for factor in factors])
    assert losses(out, "lr/language_model") == pytest.approx([2e-3 * factor for factor in factors])


def test_training_learns(run_here, settings, tmp_path):
    found = losses(run_here(settings(steps=30, samples_per_step=8), tmp_path / "out"))
    assert sum(found[-5:]) < 0.5 * sum(found[:5])
