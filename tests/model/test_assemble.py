import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vlm.config import Dtype, FeatureSelect, Geometry
from vlm.errors import Unusable
from vlm.model.assemble import assemble

TEXTS = ["What colour is the square?", "a  b\n\nc", "中文 🙂", "<|im_start|>user\nx<|im_end|>\n", "1 , 2 . don't"]


@pytest.fixture(scope="module")
def parts(tiny_model_config, tiny_tokenizer, tmp_path_factory):
    """Return a function that assembles the tiny parts with changed settings; it returns the folder and the figures."""

    def make(seed: int = 0, **changes) -> tuple[Path, dict]:
        out = tmp_path_factory.mktemp("assembled") / "model"
        return out, assemble(dataclasses.replace(tiny_model_config, **changes), tiny_tokenizer, seed, out)

    return make


@pytest.fixture
def language_model(tiny_language_model, tmp_path):
    """Return a function that saves a Qwen2 with the tiny tokenizer; keyword arguments change its config."""

    def make(**changes) -> str:
        config = Qwen2Config.from_pretrained(tiny_language_model, **changes)
        shutil.copytree(tiny_language_model, tmp_path / "language_model")
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(tmp_path / "language_model")
        return str(tmp_path / "language_model")

    return make


def opened(folder: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_the_figures_are_those_of_the_parts(parts, tiny_tokenizer):
    folder, figures = parts()
    model = opened(folder)
    assert (
        figures["image_token_id"]
        == model.config.image_token_id
        == len(AutoTokenizer.from_pretrained(tiny_tokenizer)) - 1
    )
    assert figures["image_tokens"] == model.config.image_seq_length == 4
    assert figures["multi_modal_projector_parameters"] == 16 * 32 + 32 + 32 * 32 + 32
    assert figures["vision_tower_parameters"] == sum(weight.numel() for weight in model.model.vision_tower.parameters())


def test_the_projector_from_clip_l_to_qwen_4b_has_9180160_parameters():
    tower, language = CLIPVisionConfig(hidden_size=1024, num_attention_heads=16), Qwen2Config(hidden_size=2560)
    config = LlavaConfig(vision_config=tower, text_config=language)
    with torch.device("meta"):
        assert sum(weight.numel() for weight in LlavaMultiModalProjector(config).parameters()) == 9_180_160


def test_every_copied_weight_is_its_sources(parts, tiny_language_model, tiny_tower):
    model = opened(parts()[0])
    tower = CLIPVisionModel.from_pretrained(tiny_tower).state_dict()
    assert all(torch.equal(weight, tower[name]) for name, weight in model.model.vision_tower.state_dict().items())
    source = AutoModelForCausalLM.from_pretrained(tiny_language_model, dtype=torch.float32).state_dict()
    copied = {f"model.{name}": weight for name, weight in model.model.language_model.state_dict().items()}
    copied["lm_head.weight"] = model.lm_head.weight
    assert copied.keys() == source.keys()
    assert all(torch.equal(copied[name][: len(weight)], weight) for name, weight in source.items())


def test_equal_seeds_give_equal_bytes_and_others_another_projector(parts):
    one, same, other = (weights_of(parts(seed)[0]) for seed in (0, 0, 1))
    assert one == same
    assert {name for name in one if one[name] != other[name]} >= {"model-multi_modal_projector-00001.safetensors"}
    assert one["model-vision_tower-00001.safetensors"] == other["model-vision_tower-00001.safetensors"]


def test_the_embeddings_grow_to_a_multiple_of_64_for_an_id_beyond_them(parts):
    folder, figures = parts()
    model = opened(folder)
    rows = model.get_input_embeddings().weight.shape[0]
    assert figures["image_token_id"] < rows == model.lm_head.weight.shape[0] == model.config.text_config.vocab_size
    assert rows % 64 == 0


def test_spare_embedding_rows_are_used_without_resizing(parts, language_model):
    folder, figures = parts(language_model=language_model(vocab_size=1000))
    assert opened(folder).get_input_embeddings().weight.shape[0] == 1000
    assert figures["image_token_id"] < 1000


@pytest.mark.parametrize("rows", [1000, None], ids=["spare", "resized"])
def test_tied_embeddings_stay_tied_and_are_stored_once(parts, language_model, rows):
    changes = {"tie_word_embeddings": True} | ({"vocab_size": rows} if rows else {})
    folder, _ = parts(language_model=language_model(**changes))
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert "language_model.lm_head.weight" not in names
    assert "language_model.model.embed_tokens.weight" in names


def test_weights_are_stored_in_the_type_of_the_settings(parts):
    folder, _ = parts(dtype=Dtype.bfloat16)
    for path in folder.glob("*.safetensors"):
        assert {weight.dtype for weight in load_file(path).values()} == {torch.bfloat16}
    assert LlavaConfig.from_pretrained(folder).dtype is torch.bfloat16


@pytest.mark.parametrize("geometry", Geometry)
def test_the_processor_is_llavas_with_the_geometry_of_the_settings(parts, geometry):
    folder, _ = parts(geometry=geometry)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "LlavaProcessor"
    assert processor.image_processor.do_pad is (geometry is Geometry.pad)
    assert processor.image_processor.crop_size == {"height": 16, "width": 16}


def test_the_processors_text_comes_back_letter_by_letter(parts):
    processor = AutoProcessor.from_pretrained(parts()[0])
    for text in TEXTS:
        assert processor.decode(processor.tokenizer.encode(text)) == text


@pytest.mark.parametrize("select", [None, FeatureSelect.full])
@pytest.mark.parametrize("tower", ["tiny_tower", "siglip_tower", "whole_clip"])
def test_any_tower_gives_as_many_features_as_the_processor_writes_tokens(parts, request, tower, select):
    source = request.getfixturevalue(tower)
    folder, figures = parts(vision_tower=str(source), vision_feature_select_strategy=select)
    processor, model = AutoProcessor.from_pretrained(folder), opened(folder)
    pixels = torch.randint(0, 255, (3, 20, 30), dtype=torch.uint8)
    inputs = processor(images=pixels, text="<image>\nWhat?", return_tensors="pt")
    expected = 5 if select is FeatureSelect.full and tower != "siglip_tower" else 4
    assert (inputs["input_ids"] == figures["image_token_id"]).sum() == figures["image_tokens"] == expected
    assert model(**inputs).logits.isfinite().all()
    if tower != "tiny_tower":
        assert list(processor.image_processor.image_mean) == [0.5, 0.4, 0.3]
        assert list(processor.image_processor.image_std) == [0.2, 0.3, 0.4]


def test_generation_ends_where_a_turn_ends(parts, tiny_tokenizer):
    folder, _ = parts()
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    generation = opened(folder).generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def fault_of(parts, **changes) -> str:
    with pytest.raises(Unusable) as fault:
        parts(**changes)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_missing_parts_are_refused_in_one_line(parts, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        assert name in fault_of(parts, vision_tower=str(tmp_path / name))
        assert name in fault_of(parts, language_model=str(tmp_path / name))


def test_parts_of_the_wrong_kind_are_refused_in_one_line(parts, siglip_tower, tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path / "bert")
    assert "bert model; it must be CLIP or SigLIP" in fault_of(parts, vision_tower=str(tmp_path / "bert"))
    T5Config().save_pretrained(tmp_path / "t5")
    assert "encoder-decoder" in fault_of(parts, language_model=str(tmp_path / "t5"))
    siglip = {"vision_tower": str(siglip_tower), "vision_feature_select_strategy": FeatureSelect.default}
    assert "no CLS output" in fault_of(parts, **siglip)


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_damaged_weights_are_refused_in_one_line(parts, tiny_language_model, tiny_tower, tmp_path, part):
    folder = tmp_path / part
    shutil.copytree({"language_model": tiny_language_model, "vision_tower": tiny_tower}[part], folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    lacking = sorted(weights)[0]
    save_file({name: weight for name, weight in weights.items() if name != lacking}, path, metadata={"format": "pt"})
    assert "lacks 1 weights" in fault_of(parts, **{part: str(folder)})
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be loaded" in fault_of(parts, **{part: str(folder)})
    path.unlink()
    assert "cannot be loaded" in fault_of(parts, **{part: str(folder)})
