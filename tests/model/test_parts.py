import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.errors import Unusable
from vlm.model import parts

EMBEDDINGS = "language_model.model.embed_tokens.weight"


def test_names_with_and_without_their_prefix_are_found(tiny_language_model, tmp_path):
    usual = parts.language_model(str(tiny_language_model), allow_pickle=False)
    weights = load_file(tiny_language_model / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_language_model / "config.json").read_text())
    save_file({name.removeprefix("model."): weight for name, weight in weights.items()}, tmp_path / "model.safetensors")
    bare = parts.language_model(str(tmp_path), allow_pickle=False)
    for name in (EMBEDDINGS, "language_model.lm_head.weight", "language_model.model.layers.1.mlp.up_proj.weight"):
        assert torch.equal(bare.source_of(name).read(), usual.source_of(name).read())
    assert bare.source_of("language_model.model.none") is None


@pytest.mark.parametrize("tower", ["tiny_tower", "whole_clip", "siglip_tower", "siglip2_tower"])
def test_a_tower_is_found_in_a_whole_model_and_alone(request, tower, tmp_path):
    part = parts.vision_tower(str(request.getfixturevalue(tower)), allow_pickle=False)
    model = part.load(torch.float32, tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(part.source_of("vision_tower.vision_model." + name).read(), weight)


def test_a_bare_model_in_another_type_is_the_one_that_transformers_loads(tiny_language_model, tmp_path):
    part = parts.language_model(str(tiny_language_model), allow_pickle=False)
    ours = part.load(torch.bfloat16, tmp_path).state_dict()
    assert not list(tmp_path.iterdir())
    theirs = part.model_class.from_pretrained(tiny_language_model, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_model_that_writes_no_text_is_refused(tiny_tower):
    with pytest.raises(Unusable, match="is a clip_vision_model model, not a decoder that writes text"):
        parts.language_model(str(tiny_tower), allow_pickle=False)
