from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from vlm.config import LoraConfig
from vlm.errors import Unusable
from vlm.train.adapters import layers_hit, merged, save_adapter, with_adapters

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "k_proj", "v_proj"])


@pytest.fixture
def llava(tiny_model):
    return LlavaForConditionalGeneration.from_pretrained(tiny_model)


@pytest.mark.parametrize("more", [{}, {"targets": None, "targets_regex": r".*\.[qkv]_proj"}], ids=["names", "regex"])
def test_adapters_never_reach_the_towers_attention(llava, more):
    model = with_adapters(llava, replace(LORA, **more), projector=True)
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 6 and all(".language_model." in name for name in adapted)


def test_a_regex_of_the_users_is_taken_as_it_is_and_what_it_hits_is_said(llava, capsys):
    lora = replace(LORA, targets=None, targets_regex=r"layers\.1\.mlp\.(up|down)_proj|layers\.0\.self_attn\.q_proj")
    assert layers_hit(llava, lora) == [
        "model.language_model.layers.0.self_attn.q_proj",
        "model.language_model.layers.1.mlp.up_proj",
        "model.language_model.layers.1.mlp.down_proj",
    ]
    with_adapters(llava, lora, projector=False)
    assert capsys.readouterr().out == "LoRA of rank 4, scale 2, on 3 layers: q_proj ×1, up_proj ×1, down_proj ×1\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"targets": ["c_attn"]}, "c_attn names no layer of the language model, which has down_proj, gate_proj"),
        ({"targets": ["q_proj", "qproj"]}, "lora.targets: qproj names no layer of the language model"),
        ({"targets": None, "targets_regex": r"vision_tower\..*"}, r"targets_regex=vision_tower\..* names no layer"),
        ({"targets": None, "targets_regex": "layers.0.mlp"}, "layers.0.mlp, which is a Qwen2MLP, not a linear layer"),
        ({"targets": None, "targets_regex": "(q_proj"}, "is no regular expression"),
    ],
    ids=["other names", "one misspelt", "the tower", "a block", "unbalanced"],
)
def test_targets_that_cannot_be_adapted_are_refused_in_one_line(llava, more, said):
    with pytest.raises(Unusable) as refused:
        with_adapters(llava, replace(LORA, **more), projector=True)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("more", "scale"), [({}, 2.0), ({"rslora": True}, 4.0), ({"dora": True}, 2.0)], ids=str)
def test_scale_and_kind_are_those_of_the_settings(llava, more, scale):
    model = with_adapters(llava, replace(LORA, **more), projector=False)
    layer = model.get_submodule("base_model.model.model.language_model.layers.0.self_attn.q_proj")
    assert layer.scaling == {"default": scale}
    assert bool(layer.lora_magnitude_vector) is bool(more.get("dora"))


def test_an_adapter_folder_loads_in_plain_peft_and_names_no_place_of_this_machine(llava, tiny_model, tmp_path):
    model = with_adapters(llava, LORA, projector=True)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight += torch.randn(weight.shape)
    save_adapter(model, tmp_path / "adapter")
    assert str(tiny_model.parent) not in "".join(
        path.read_text() for path in (tmp_path / "adapter").iterdir() if path.suffix != ".safetensors"
    )
    again = PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(tiny_model), tmp_path / "adapter")
    state, wanted = again.state_dict(), model.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)
    before = dict(LlavaForConditionalGeneration.from_pretrained(tiny_model).named_parameters())
    after = dict(merged(tiny_model, tmp_path / "adapter", torch.float32).named_parameters())
    moved = {
        name.rpartition(".")[0].rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])
    }
    assert moved == {"q_proj", "k_proj", "v_proj", "linear_1", "linear_2"}
