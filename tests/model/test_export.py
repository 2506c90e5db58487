import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from vlm.model.export import INDEX, link_folder, save_weights, stored_dtype

ASK = "<image>\nWhat colour is the square?"
LOGITS = """
import sys, numpy as np, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, picture, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
inputs = processor(images=Image.open(picture), text=sys.stdin.read(), return_tensors="pt")
np.save(out, model(**inputs).logits.detach().numpy())
"""


def opened(folder: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: LlavaForConditionalGeneration, folder: Path) -> torch.Tensor:
    inputs = AutoProcessor.from_pretrained(folder)(images=picture(), text=ASK, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


def names_in(folder: Path) -> set[str]:
    return set(json.loads((folder / INDEX).read_text())["weight_map"])


def weights_of(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture
def trained(tiny_model, tmp_path):
    """A folder begun as the tiny model's, in which the projector was trained; and the model as it is in memory."""
    before = {name: path.read_bytes() for name, path in weights_of(tiny_model).items()}
    folder = tmp_path / "model"
    link_folder(tiny_model, folder)
    model = opened(folder)
    with torch.no_grad():
        for weight in model.model.multi_modal_projector.parameters():
            weight += torch.randn(weight.shape)
    save_weights(model, folder, torch.float32, ("multi_modal_projector",))
    assert before == {name: path.read_bytes() for name, path in weights_of(tiny_model).items()}
    return folder, model


def test_unchanged_parts_share_the_bases_files_and_changed_ones_do_not(tiny_model, trained):
    folder, _ = trained
    shared = {name: path.samefile(tiny_model / name) for name, path in weights_of(folder).items()}
    assert shared == {
        "model-language_model-00001.safetensors": True,
        "model-multi_modal_projector-00001.safetensors": False,
        "model-vision_tower-00001.safetensors": True,
    }
    assert not any(path.samefile(tiny_model / path.name) for path in folder.glob("*.json"))
    assert not list(folder.glob("*.tmp"))


def test_what_is_saved_is_what_was_trained(tiny_model, trained):
    folder, model = trained
    assert torch.equal(logits(opened(folder), folder), logits(model, folder))
    assert not torch.equal(logits(opened(folder), folder), logits(opened(tiny_model), tiny_model))
    assert names_in(folder) == names_in(tiny_model)


def test_a_fresh_process_with_transformers_alone_gives_the_same_logits(trained, tmp_path):
    folder, model = trained
    picture().save(tmp_path / "picture.png")
    command = [sys.executable, "-c", LOGITS, str(folder), str(tmp_path / "picture.png"), str(tmp_path / "logits.npy")]
    subprocess.run(command, input=ASK, text=True, check=True, capture_output=True, cwd=tmp_path)
    assert np.allclose(np.load(tmp_path / "logits.npy"), logits(model, folder).numpy(), rtol=1e-5, atol=1e-5)


def test_auto_classes_know_the_folder(tiny_model):
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tiny_model), LlavaForConditionalGeneration)
    assert type(AutoProcessor.from_pretrained(tiny_model)).__name__ == "LlavaProcessor"


def test_names_are_those_of_published_folders(tiny_model):
    names = names_in(tiny_model)
    assert {name.split(".")[0] for name in names} == {"vision_tower", "multi_modal_projector", "language_model"}
    assert all(name.startswith("vision_tower.vision_model.") for name in names if name.startswith("vision_tower"))
    assert {
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.1.mlp.down_proj.weight",
        "language_model.lm_head.weight",
    } <= names


def test_the_index_says_where_every_weight_lies(tiny_model):
    index = json.loads((tiny_model / INDEX).read_text())
    for name, path in weights_of(tiny_model).items():
        with safe_open(path, "pt") as weights:
            assert set(weights.keys()) == {key for key, file in index["weight_map"].items() if file == name}
    assert index["metadata"]["total_size"] == sum(path.stat().st_size for path in weights_of(tiny_model).values())


def test_no_weight_is_missing_or_left_over_when_loading(tiny_model):
    _, info = LlavaForConditionalGeneration.from_pretrained(tiny_model, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_large_parts_are_split_into_files_and_load_as_one(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.model.export.MAX_FILE_BYTES", 20_000)
    model = opened(tiny_model)
    link_folder(tiny_model, tmp_path)
    for path in weights_of(tmp_path).values():
        path.unlink()
    save_weights(model, tmp_path, torch.float32)
    sizes = {name: path.stat().st_size for name, path in weights_of(tmp_path).items()}
    assert "model-language_model-00002.safetensors" in sizes
    for name, size in sizes.items():
        assert size < 25_000 or len(load_file(tmp_path / name)) == 1
    assert torch.equal(logits(opened(tmp_path), tmp_path), logits(model, tmp_path))


def test_weights_are_stored_in_the_type_asked_for(tiny_model, tmp_path):
    link_folder(tiny_model, tmp_path)
    save_weights(opened(tiny_model), tmp_path, torch.bfloat16)
    assert stored_dtype(tmp_path) is torch.bfloat16
    assert stored_dtype(tiny_model) is torch.float32
    for path in weights_of(tmp_path).values():
        assert {weight.dtype for weight in load_file(path).values()} == {torch.bfloat16}
        assert not path.samefile(tiny_model / path.name)


def test_weight_files_are_as_readable_as_any_other_file(trained):
    folder, _ = trained
    (folder / "ordinary").touch()
    assert {path.stat().st_mode for path in weights_of(folder).values()} == {(folder / "ordinary").stat().st_mode}


def test_a_folder_on_another_disk_is_copied(tiny_model, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("vlm.model.export.os.link", refuse)
    link_folder(tiny_model, tmp_path / "model")
    for name, path in weights_of(tmp_path / "model").items():
        assert path.read_bytes() == (tiny_model / name).read_bytes()
        assert not path.samefile(tiny_model / name)


def test_linking_again_begins_anew(tiny_model, trained):
    folder, _ = trained
    link_folder(tiny_model, folder)
    assert all(path.samefile(tiny_model / name) for name, path in weights_of(folder).items())
    assert (folder / INDEX).read_bytes() == (tiny_model / INDEX).read_bytes()
