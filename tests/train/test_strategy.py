import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from vlm.config import ADAPTED, LearningRates, LoraConfig, Parts, Strategy
from vlm.errors import Unusable
from vlm.train import strategy
from vlm.train.loop import rate_factor
from vlm.train.run import train

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "k_proj", "v_proj"])


@pytest.fixture
def llava(tiny_model):
    return LlavaForConditionalGeneration.from_pretrained(tiny_model)


def choose(llava, chosen, switches=None, lora=LORA):
    return strategy.choose(llava, chosen, switches or Parts(), lora, lambda: torch.manual_seed(0))


def all_weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


PROMISED = {  # how the published names begin of what each strategy may change
    Strategy.projector: ("multi_modal_projector.",),
    Strategy.freeze_vision: ("multi_modal_projector.", "language_model."),
    Strategy.full: ("multi_modal_projector.", "language_model.", "vision_tower."),
}
WORDS = ("language_model.model.embed_tokens.", "language_model.lm_head.")
SWITCHED = [
    (Strategy.full, Parts(language_model=False), ("multi_modal_projector.", "vision_tower.")),
    (Strategy.full, Parts(projector=False), ("vision_tower.", "language_model.")),
    (Strategy.projector, Parts(embeddings=True), ("multi_modal_projector.", *WORDS)),
]


def changed_by(cfg, tiny_model, tiny_shards, out) -> tuple[set[str], set[str]]:
    """Return the names of all weights, and of those that a training changed by a bit or more."""
    train(cfg, 0, base=tiny_model, split=tiny_shards / "finetune", out=out)
    before, after = all_weights(tiny_model), all_weights(out / "model")
    assert before.keys() == after.keys()
    return set(before), {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("chosen", "switches", "begin"), [*((one, Parts(), PROMISED.get(one)) for one in Strategy), *SWITCHED], ids=str
)
def test_what_is_frozen_does_not_move_by_a_bit_and_what_trains_does(
    settings, tiny_model, tiny_shards, tmp_path, chosen, switches, begin
):
    rates = {part: None if getattr(switches, part) is False else 5e-3 for part in vars(switches)}
    cfg = settings(chosen, steps=50, train=switches, lr=LearningRates(**rates, lora=1e-2))
    names, changed = changed_by(cfg, tiny_model, tiny_shards, tmp_path)
    if chosen in ADAPTED:
        adapted = {name for name in names if name.split(".")[-2] in {"q_proj", "v_proj", "down_proj"}}
        adapted = {name for name in adapted if name.startswith("language_model.") and name.endswith("weight")}
        assert changed == adapted | {name for name in names if name.startswith("multi_modal_projector.")}
        return
    # the tower's last layer and final norm lie behind its feature layer: they never get a gradient
    behind = {name for name in names if "vision_model.encoder.layers.1." in name or "post_layernorm" in name}
    assert changed == {name for name in names if name.startswith(begin)} - behind


@pytest.mark.parametrize("chosen", ADAPTED, ids=lambda chosen: chosen.value)
def test_a_projector_that_is_switched_off_stays_and_is_no_part_of_the_adapter(
    settings, tiny_model, tiny_shards, tmp_path, chosen
):
    cfg = settings(chosen, train=Parts(projector=False), lr=LearningRates(lora=1e-2))
    _, changed = changed_by(cfg, tiny_model, tiny_shards, tmp_path)
    assert changed and all(name.startswith("language_model.") for name in changed)
    assert all("lora_" in name for name in load_file(tmp_path / "adapter/adapter_model.safetensors"))


@pytest.mark.parametrize("chosen", [Strategy.projector, Strategy.lora], ids=lambda chosen: chosen.value)
def test_a_linear_projector_stays_one_layer(llava, chosen):
    llava.config.projector_hidden_act = "linear"
    _, trainees = choose(llava, chosen)
    projector = [trainee.name for trainee in trainees if trainee.part == "projector"]
    assert len(projector) == 2 and all(".linear_1." in name for name in projector)


def test_norms_and_biases_have_no_weight_decay(llava):
    _, trainees = choose(llava, Strategy.full)
    groups = strategy.param_groups(trainees, LearningRates(1e-3, 1e-3, 1e-3), 0.1)
    assert sum(len(group["params"]) for group in groups) == len(trainees)
    for group in groups:
        assert {weight.ndim > 1 for weight in group["params"]} == {group["weight_decay"] > 0}


def test_a_tower_layer_has_less_of_the_rate_the_farther_it_is_from_the_feature_layer(llava):
    llava.config.vision_feature_layer = -1  # both layers of the tiny tower are used then
    _, trainees = choose(llava, Strategy.full)
    rates = LearningRates(projector=1.0, language_model=1.0, vision_tower=0.1, vision_layer_decay=0.5)
    of = {id(weight): group for group in strategy.param_groups(trainees, rates, 0.0) for weight in group["params"]}
    found = {
        name: of[id(weight)]["peak_lr"]
        for name, weight in llava.model.vision_tower.named_parameters()
        if id(weight) in of
    }
    for name, rate in found.items():
        below = (
            0 if "layers.1." in name else 1 if "layers.0." in name else 2
        )  # the rest is the embeddings and their norm
        assert rate == pytest.approx(0.1 * 0.5**below), name
    assert {of[id(weight)]["peak_lr"] for weight in llava.model.language_model.parameters()} == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_groups_rate_at_every_step_is_the_formulas(settings, tiny_model, tiny_shards, tmp_path, schedule):
    peaks = LearningRates(1e-3, 2e-3, 4e-3, embeddings=3e-3, vision_layer_decay=0.5)
    cfg = settings(Strategy.full, lr=peaks, steps=10)
    cfg.schedule = type(cfg.schedule)(schedule)
    train(cfg, 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    of_part = {"projector": 1e-3, "language_model": 2e-3, "embeddings": 3e-3}
    of_part |= {"vision_tower.below_00": 4e-3, "vision_tower.below_01": 2e-3}
    assert len(lines) == 10
    for step, line in enumerate(lines):
        factor = rate_factor(step, 10, cfg.schedule, 2)
        seen = {name.removeprefix("lr/"): rate for name, rate in line.items() if name.startswith("lr/")}
        assert seen == pytest.approx({part: peak * factor for part, peak in of_part.items()})


def test_a_part_that_trains_without_a_rate_is_refused(llava):
    _, trainees = choose(llava, Strategy.freeze_vision)
    with pytest.raises(Unusable, match=r"lr\.embeddings has no value"):
        strategy.param_groups(trainees, LearningRates(projector=1e-3), 0.0)


def test_a_strategy_whose_parts_are_all_switched_off_is_refused(llava):
    with pytest.raises(Unusable, match="nothing trains"):
        choose(llava, Strategy.projector, Parts(projector=False))


def test_what_trains_is_listed_by_part(llava):
    model, trainees = choose(llava, Strategy.projector)
    assert "trains  projector" in strategy.table(model, trainees)
    assert f"{sum(t.weight.numel() for t in trainees):,} parameters in 4 tensors" in strategy.table(model, trainees)
