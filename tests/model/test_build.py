from dataclasses import replace

import pytest

from vlm.errors import Unusable
from vlm.model.build import build


def test_the_figures_hold_those_of_the_gates(tiny_model_config, tiny_tokenizer, tmp_path):
    figures = build(tiny_model_config, tiny_tokenizer, 0, tmp_path / "model")
    assert figures["image_tokens"] == 4
    assert (figures["projector"], figures["projector_seed"]) == ("mlp2x_gelu", 0)
    assert figures["gates"]["text_logits_difference"] == 0
    assert (tmp_path / "model/config.json").is_file()
    assert not list((tmp_path / "model").glob("*.tmp"))


def test_what_an_interrupted_run_left_is_begun_anew(tiny_model_config, tiny_tokenizer, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model-language_model-00009.safetensors").write_text("half")
    build(tiny_model_config, tiny_tokenizer, 0, tmp_path / "model")
    assert not (tmp_path / "model/model-language_model-00009.safetensors").exists()


def test_nothing_is_left_of_a_part_that_cannot_be_used(tiny_model_config, tiny_tokenizer, tmp_path):
    with pytest.raises(Unusable):
        build(replace(tiny_model_config, vision_tower="none"), tiny_tokenizer, 0, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_an_assembly_that_fails_a_gate(tiny_model_config, tiny_tokenizer, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        assert (tmp_path / "model/model.safetensors.index.json").is_file()
        raise Unusable("gate: no")

    monkeypatch.setattr("vlm.model.build.check", refuse)
    with pytest.raises(Unusable, match="gate: no"):
        build(tiny_model_config, tiny_tokenizer, 0, tmp_path / "model")
    assert not list(tmp_path.iterdir())
