import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from vlm.config import LearningRates, LoraConfig, Strategy
from vlm.errors import Unusable
from vlm.train import strategy
from vlm.train.run import train

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "k_proj", "v_proj"])


@pytest.fixture
def llava(tiny_model):
    return LlavaForConditionalGeneration.from_pretrained(tiny_model)


def all_weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


PROMISED = {  # how the published names begin of what each strategy may change
    Strategy.projector: ("multi_modal_projector.",),
    Strategy.freeze_vision: ("multi_modal_projector.", "language_model."),
    Strategy.full: ("multi_modal_projector.", "language_model.", "vision_tower."),
}


@pytest.mark.parametrize("chosen", list(Strategy), ids=lambda chosen: chosen.value)
def test_what_is_frozen_does_not_move_by_a_bit_and_what_trains_does(
    settings, tiny_model, tiny_shards, tmp_path, chosen
):
    train(settings(chosen, steps=20), 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path)
    before, after = all_weights(tiny_model), all_weights(tmp_path / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if chosen is Strategy.lora:
        adapted = {name for name in before if name.split(".")[-2] in {"q_proj", "v_proj", "down_proj"}}
        adapted = {name for name in adapted if name.startswith("language_model.") and name.endswith("weight")}
        assert changed == adapted | {name for name in before if name.startswith("multi_modal_projector.")}
        return
    # the tower's last layer and final norm lie behind its feature layer: they never get a gradient
    behind = {name for name in before if "vision_model.encoder.layers.1." in name or "post_layernorm" in name}
    assert changed == {name for name in before if name.startswith(PROMISED[chosen])} - behind


def test_adapters_never_reach_the_towers_attention(llava):
    model, trainees = strategy.choose(llava, Strategy.lora, LORA, lambda: torch.manual_seed(0))
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapted and all(".language_model." in name for name in adapted)
    assert {trainee.part for trainee in trainees} == {"lora", "projector"}


@pytest.mark.parametrize("chosen", [Strategy.projector, Strategy.lora], ids=lambda chosen: chosen.value)
def test_a_linear_projector_stays_one_layer(llava, chosen):
    llava.config.projector_hidden_act = "linear"
    _, trainees = strategy.choose(llava, chosen, LORA, lambda: None)
    projector = [trainee.name for trainee in trainees if trainee.part == "projector"]
    assert len(projector) == 2 and all(".linear_1." in name for name in projector)


def test_targets_that_match_nothing_are_refused(llava):
    with pytest.raises(Unusable, match="name no layer"):
        strategy.choose(llava, Strategy.lora, LoraConfig(targets=["c_attn"]), lambda: None)


def test_norms_and_biases_have_no_weight_decay(llava):
    _, trainees = strategy.choose(llava, Strategy.freeze_vision, LORA, lambda: None)
    for group in strategy.param_groups(trainees, LearningRates(), 0.1):
        assert {weight.ndim > 1 for weight in group["params"]} == {group["weight_decay"] > 0}


def test_what_trains_is_listed_by_part(llava):
    model, trainees = strategy.choose(llava, Strategy.projector, LORA, lambda: None)
    assert "trains  projector" in strategy.table(model, trainees)
    assert f"{sum(t.weight.numel() for t in trainees):,} parameters in 4 tensors" in strategy.table(model, trainees)
