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

from vlm.config import Dtype, FeatureSelect, Geometry, ModelConfig, ProjectorKind
from vlm.errors import Unusable
from vlm.model.assemble import assemble
from vlm.model.build import build
from vlm.model.tokenizer import patch

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


def test_no_path_of_this_machine_is_stored(parts, tiny_tower):
    folder, _ = parts()
    assert not [path for path in folder.glob("*.json*") if str(tiny_tower.parent) in path.read_text()]


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
    assert "cut short" in fault_of(parts, **{part: str(folder)})
    path.unlink()
    assert "no model.safetensors" in fault_of(parts, **{part: str(folder)})


def test_weights_of_another_shape_than_the_config_says_are_refused(parts, language_model):
    folder = Path(language_model())
    edit_json(folder / "config.json", intermediate_size=48)
    assert "down_proj.weight as (32, 64), but its config says (32, 48)" in fault_of(parts, language_model=str(folder))


def test_a_tokenizer_whose_ids_exceed_the_embeddings_is_refused(parts, language_model):
    assert "has 300 embedding rows, but its tokenizer writes ids up to 319" in fault_of(
        parts, language_model=language_model(vocab_size=300)
    )


def test_nothing_is_written_when_a_part_is_refused(tiny_model_config, tiny_tokenizer, tmp_path):
    with pytest.raises(Unusable):
        assemble(dataclasses.replace(tiny_model_config, vision_tower="none"), tiny_tokenizer, 0, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_pickled_weights_are_read_only_if_allowed_and_then_are_the_same(parts, tiny_model_config, tmp_path, part):
    folder = tmp_path / part
    shutil.copytree(getattr(tiny_model_config, part), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "model.allow_pickle=true" in fault_of(parts, **{part: str(folder)})
    ours, _ = parts(allow_pickle=True, **{part: str(folder)})
    assert weights_of(ours) == weights_of(parts()[0])


def test_a_linear_projector_is_one_layer_in_the_stock_format(parts):
    folder, figures = parts(projector=ProjectorKind.linear)
    projector = opened(folder).model.multi_modal_projector
    features = torch.randn(3, 16)
    assert torch.equal(projector(features), projector.linear_1(features))
    assert figures["projector"] == "linear"


def test_every_end_of_the_language_model_ends_an_answer(parts, language_model):
    source = Path(language_model())
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.7}))
    generation = opened(parts(language_model=str(source))[0]).generation_config
    assert generation.eos_token_id == [AutoTokenizer.from_pretrained(source).eos_token_id, 7, 9]
    assert not generation.do_sample


def test_a_layer_that_the_tower_does_not_have_is_refused(parts):
    assert "has 2 layers, so there is no vision_feature_layer=-4" in fault_of(parts, vision_feature_layer=-4)
    assert "no vision_feature_layer=3" in fault_of(parts, vision_feature_layer=3)


@pytest.fixture
def based(tiny_model, tmp_path, tiny_model_config):
    """Return a function that starts from the tiny LLaVA, as any version of transformers may have saved it."""

    def make(**changes) -> tuple[Path, dict]:
        tokenizer = tmp_path / "tokenizer"
        patch(changes.get("base", str(tiny_model)), "<image>", tokenizer)
        model = ModelConfig(language_model="?", vision_tower="?", base=str(tiny_model), dtype=Dtype.float32)
        out = tmp_path / "based"
        return out, build(dataclasses.replace(model, **changes), tokenizer, 9, out)

    return make


def test_an_assembled_model_is_taken_as_it_is(based, tiny_model):
    folder, figures = based()
    assert {name: path.read_bytes() for name, path in files_of(folder).items()} == {
        name: path.read_bytes() for name, path in files_of(tiny_model).items()
    }
    assert figures["gates"]["weights_compared"] == len(load_index(folder)["weight_map"])
    assert figures["gates"]["text_logits_difference"] == figures["gates"]["tower_features_difference"] == 0
    assert "projector_seed" not in figures
    assert LlavaConfig.from_pretrained(folder).to_dict() == LlavaConfig.from_pretrained(tiny_model).to_dict()


def test_an_assembled_model_of_other_names_and_files_gets_ours(based, tiny_model, tmp_path):
    saved = tmp_path / "saved"
    opened(tiny_model).save_pretrained(saved, max_shard_size="20KB")
    AutoProcessor.from_pretrained(tiny_model).save_pretrained(saved)
    assert len(list(saved.glob("*.safetensors"))) > 3
    state = load_index(saved)["weight_map"]
    weights = {name: tensor for file in set(state.values()) for name, tensor in load_file(saved / file).items()}
    renamed = {new_name(name): tensor for name, tensor in weights.items()}
    for file in [*saved.glob("*.safetensors"), saved / "model.safetensors.index.json"]:
        file.unlink()
    save_file(renamed, saved / "model.safetensors", metadata={"format": "pt"})
    folder, _ = based(base=str(saved))
    assert weights_of(folder) == weights_of(tiny_model)


def new_name(published: str) -> str:
    """Return the name that transformers 5 gives a weight in memory."""
    if published.startswith("language_model.lm_head."):
        return published.removeprefix("language_model.")
    return "model." + published.replace("language_model.model.", "language_model.").replace(
        "tower.vision_model", "tower"
    )


def test_a_base_of_another_kind_or_picture_token_is_refused(based, tiny_model, tiny_language_model, tmp_path):
    with pytest.raises(Unusable, match="is a qwen2 model, not a LlavaForConditionalGeneration"):
        based(base=str(tiny_language_model))
    shutil.copytree(tiny_model, tmp_path / "other")
    edit_json(tmp_path / "other/config.json", image_token_index=5)
    with pytest.raises(Unusable, match="takes .* for a picture: say model.image_token="):
        based(base=str(tmp_path / "other"))
    edit_json(tmp_path / "other/config.json", vision_feature_layer=[-2, -1])
    with pytest.raises(Unusable, match="joins several tower layers"):
        based(base=str(tmp_path / "other"))


def files_of(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.glob("*.safetensors")}


def load_index(folder: Path) -> dict:
    return json.loads((folder / "model.safetensors.index.json").read_text())


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
