import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from vlm.errors import Unusable
from vlm.model import verify
from vlm.model.export import save_weights
from vlm.model.forward import PackedLoss


@pytest.fixture
def exported(tiny_model, tmp_path):
    """A folder as training leaves it: model/ and the probe; the function changes the model in the folder."""
    llava = LlavaForConditionalGeneration.from_pretrained(tiny_model)
    verify.write_probe(PackedLoss(llava), tmp_path / verify.PROBE)
    shutil.copytree(tiny_model, tmp_path / "model")

    def change(by: float) -> None:
        with torch.no_grad():
            llava.model.multi_modal_projector.linear_1.weight.add_(by)
        save_weights(llava, tmp_path / "model", torch.float32)

    return tmp_path, change


def test_a_fresh_process_finds_the_logits_of_training_in_the_folder(exported, tiny_model):
    out, _ = exported
    figures = verify.check(out, tiny_model, quantised=False)
    assert figures["export_gate"]["exported model and training"] <= 1e-5
    assert not (out / verify.PROBE).exists()


def test_a_folder_that_is_not_what_was_trained_fails_the_stage(exported, tiny_model):
    out, change = exported
    change(1e-3)
    with pytest.raises(Unusable, match="^export gate: the logits of exported model and training differ by") as refused:
        verify.check(out, tiny_model, quantised=False)
    assert "\n" not in str(refused.value)


def test_a_folder_that_does_not_load_is_named(exported, tiny_model):
    out, _ = exported
    (out / "model/config.json").write_text("{")
    with pytest.raises(Unusable, match="a fresh process cannot load"):
        verify.check(out, tiny_model, quantised=False)


def test_the_question_has_one_picture_and_reads_it(exported, tiny_model):
    out, _ = exported
    asked = load_file(out / verify.PROBE)
    llava = LlavaForConditionalGeneration.from_pretrained(tiny_model)
    assert int((asked["ids"] == llava.config.image_token_id).sum()) == llava.config.image_seq_length
    ids, blank = asked["ids"], torch.zeros_like(asked["pixels"])
    with torch.no_grad():
        blind = llava.eval()(input_ids=ids, pixel_values=blank, attention_mask=torch.ones_like(ids)).logits
    assert verify.difference(blind, asked["logits"]) > 0.01


def test_bounds_follow_the_coarsest_type_and_nf4s_own_effect():
    exact, rounded = torch.ones(1, 2, 4), torch.ones(1, 2, 4, dtype=torch.bfloat16)
    answers = {"model": exact, "adapter": exact, "nf4_adapter": exact, "nf4_base": exact * 1.1, "base": exact}
    full = {"model": exact}
    assert verify.comparisons(exact, full, torch.float32)["exported model and training"][2] == 1e-5
    assert verify.comparisons(rounded, full, torch.float32)["exported model and training"][2] == 5e-2
    assert verify.comparisons(exact, full, torch.bfloat16)["exported model and training"][2] == 5e-2
    found = {name: bound for name, (_, _, bound) in verify.comparisons(exact, answers, torch.float32).items()}
    assert found == pytest.approx(
        {
            "merged model and base + adapter": 1e-5,
            "NF4 base + adapter and training": 5e-2,
            "exported model and training": 0.4,
        }
    )
