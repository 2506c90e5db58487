"""Each gate refuses the fault that it is there for."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from vlm.errors import Unusable
from vlm.model import fresh
from vlm.model.assemble import plan, write_model
from vlm.model.gates import check, model_gates, processor_gate, texts_of, weights_gate
from vlm.model.tokenizer import patch

LANGUAGE = "model-language_model-00001.safetensors"
TOWER = "model-vision_tower-00001.safetensors"
EMBEDDINGS = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def ready(tiny_model_config, tiny_tokenizer):
    return plan(tiny_model_config, tiny_tokenizer)


@pytest.fixture
def folder(ready, tiny_model_config, tmp_path):
    """A sound folder that a test may spoil."""
    write_model(ready, tiny_model_config, 0, tmp_path / "model")
    return tmp_path / "model"


def seen(folder, ready) -> fresh.Seen:
    """What a fresh process would see."""
    return fresh.look(folder, texts_of(ready))


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path, change) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_sound_folder_passes_every_gate_exactly(ready, folder):
    assert check(ready, folder) == {
        "texts_returned": 7,
        "texts_returned_as_by_the_source": 0,
        "weights_compared": len(ready.shapes) - 4,
        "text_logits_difference": 0.0,
        "tower_features_difference": 0.0,
        "tokens_generated": 4,
    }


def test_the_texts_are_mixed_and_hold_every_special_token(ready):
    whole = "".join(texts_of(ready))
    assert all(
        part in whole for part in ("What colour", "图片", "🦆", "def f", "<|im_end|>", "<|endoftext|>", "<image>")
    )


def test_another_processor_is_refused(ready, folder, tiny_tower):
    with pytest.raises(Unusable, match="AutoProcessor makes a CLIPProcessor"):
        processor_gate(ready, fresh.Seen("CLIPProcessor", [], 4, [1, 3, 16, 16]))
    (folder / "processor_config.json").unlink()
    shutil.copy(tiny_tower / "preprocessor_config.json", folder)  # as assemblies by hand do
    with pytest.raises(Unusable, match="a fresh process cannot load"):
        check(ready, folder)


def test_text_that_comes_back_otherwise_is_refused(ready, folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Unusable, match="the processor turns .What colour"):
        processor_gate(ready, seen(folder, ready))


def test_a_wrong_number_of_picture_tokens_is_refused(ready, folder):
    edit_json(folder / "processor_config.json", vision_feature_select_strategy="full")
    with pytest.raises(Unusable, match="writes 5 tokens for a picture, the tower gives 4"):
        processor_gate(ready, seen(folder, ready))


@pytest.mark.parametrize("file", [LANGUAGE, TOWER])
def test_a_weight_that_moved_by_one_bit_is_refused(ready, folder, file):
    def nudge(weights) -> None:
        flat = weights[sorted(weights)[0]].view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))

    edit_weights(folder / file, nudge)
    with pytest.raises(Unusable, match="gate: .* is not what model.safetensors holds"):
        weights_gate(ready, folder)


def test_a_weight_that_is_missing_is_refused(ready, folder):
    edit_weights(folder / TOWER, lambda weights: weights.pop(sorted(weights)[0]))
    with pytest.raises(Unusable, match="disagree about vision_tower"):
        weights_gate(ready, folder)


def test_new_rows_that_are_not_the_mean_are_refused(ready, folder):
    def zero(weights) -> None:
        assert torch.allclose(weights[EMBEDDINGS][-1], weights[EMBEDDINGS][: ready.rows].mean(0))
        weights[EMBEDDINGS][-1] = 0

    edit_weights(folder / LANGUAGE, zero)
    with pytest.raises(Unusable, match="new rows of language_model.model.embed_tokens.weight"):
        weights_gate(ready, folder)


@pytest.mark.parametrize(
    ("where", "changes", "fault"),
    [
        ("text_config", {"hidden_act": "relu"}, "text_logits differ"),
        ("text_config", {"rms_norm_eps": 0.1}, "text_logits differ"),
        ("vision_config", {"hidden_act": "relu"}, "tower_features differ"),
        (None, {"vision_feature_layer": -1}, "tower_features differ"),
        (None, {"vision_feature_select_strategy": "full"}, "tower_features have the shape"),
    ],
)
def test_a_config_that_computes_something_else_is_refused(ready, folder, where, changes, fault):
    config = json.loads((folder / "config.json").read_text())
    (config[where] if where else config).update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unusable, match=fault):
        model_gates(ready, folder)


def test_weights_that_are_not_numbers_are_refused(ready, folder):
    edit_weights(folder / LANGUAGE, lambda weights: weights[EMBEDDINGS].fill_(torch.nan))
    with pytest.raises(Unusable, match="text_logits differ from the bare model's by nan"):
        model_gates(ready, folder)


def test_a_projector_that_spoils_the_answer_is_refused(ready, folder):
    edit_weights(
        folder / "model-multi_modal_projector-00001.safetensors",
        lambda weights: weights["multi_modal_projector.linear_2.bias"].fill_(torch.inf),
    )
    with pytest.raises(Unusable, match="logits are not finite"):
        model_gates(ready, folder)


def test_a_language_model_that_the_format_cannot_express_is_refused(tiny_model_config, tiny_language_model, tmp_path):
    """Gemma 2 caps its logits after lm_head, which LLaVA's class does not."""
    source = tmp_path / "gemma2"
    shutil.copytree(tiny_language_model, source)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(**small, num_key_value_heads=1, head_dim=16, vocab_size=384, final_logit_softcapping=0.1)
    Gemma2ForCausalLM(config).save_pretrained(source)
    patch(str(source), "<image>", tmp_path / "tokenizer")
    model = replace(tiny_model_config, language_model=str(source))
    ready = plan(model, tmp_path / "tokenizer")
    write_model(ready, model, 0, tmp_path / "model")
    with pytest.raises(Unusable, match="text_logits differ .*: the LLaVA format does not compute this model"):
        model_gates(ready, tmp_path / "model")
