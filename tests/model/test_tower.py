import pytest
from transformers import BertConfig, CLIPVisionConfig, Siglip2Config, Siglip2VisionConfig, SiglipVisionConfig

from vlm.config import FeatureSelect
from vlm.errors import Unusable
from vlm.model.tower import TowerShape, check_layer, tower_config, tower_shape

KNOWN = {  # what the published towers give, by (config, strategy)
    "clip_l_336": (CLIPVisionConfig(image_size=336, patch_size=14), None, 576),
    "clip_l_336_with_cls": (CLIPVisionConfig(image_size=336, patch_size=14), FeatureSelect.full, 577),
    "clip_l_224": (CLIPVisionConfig(image_size=224, patch_size=14), None, 256),
    "siglip_so400m_384": (SiglipVisionConfig(image_size=384, patch_size=14), None, 729),
    "siglip2_b16_512": (SiglipVisionConfig(image_size=512, patch_size=16), None, 1024),
}


@pytest.mark.parametrize(("config", "select", "tokens"), KNOWN.values(), ids=KNOWN)
def test_published_towers_have_the_known_number_of_tokens(tmp_path, config, select, tokens):
    config.save_pretrained(tmp_path)
    assert tower_shape(str(tmp_path), select).image_tokens == tokens


def test_a_cls_output_is_dropped_where_there_is_one(tiny_tower, siglip_tower):
    assert tower_shape(str(tiny_tower), None) == TowerShape(16, 8, True, FeatureSelect.default)
    assert tower_shape(str(siglip_tower), None) == TowerShape(16, 8, False, FeatureSelect.full)
    assert tower_shape(str(tiny_tower), None).image_tokens == tower_shape(str(siglip_tower), None).image_tokens == 4


def test_dropping_a_patch_for_a_cls_that_is_not_there_is_refused(siglip_tower):
    with pytest.raises(Unusable, match="no CLS output"):
        tower_shape(str(siglip_tower), FeatureSelect.default)
    assert tower_shape(str(siglip_tower), FeatureSelect.full).image_tokens == 4


def test_the_vision_half_of_a_whole_clip_is_found(whole_clip):
    assert tower_config(str(whole_clip)).model_type == "clip_vision_model"
    assert tower_shape(str(whole_clip), None).image_tokens == 4


@pytest.mark.parametrize("config", [Siglip2Config(), Siglip2VisionConfig()], ids=["whole", "vision"])
def test_a_tower_of_no_one_size_is_refused(tmp_path, config):
    config.save_pretrained(tmp_path)
    with pytest.raises(Unusable, match="NaFlex tower") as fault:
        tower_config(str(tmp_path))
    assert "\n" not in str(fault.value)


def test_a_siglip_2_of_one_size_keeps_all_its_patches(siglip2_tower):
    assert tower_shape(str(siglip2_tower), None) == TowerShape(24, 8, False, FeatureSelect.full)


def test_an_assembled_model_keeps_the_strategy_it_was_made_with(tiny_model):
    assert tower_shape(str(tiny_model), None) == TowerShape(16, 8, True, FeatureSelect.default)
    with pytest.raises(Unusable, match="was made with vision_feature_select_strategy=default"):
        tower_shape(str(tiny_model), FeatureSelect.full)


@pytest.mark.parametrize("layer", [-3, -1, 0, 2])
def test_a_tower_of_two_layers_has_these_hidden_states(layer):
    check_layer(layer, 2, "tower")


@pytest.mark.parametrize("layer", [-4, 3])
def test_a_tower_of_two_layers_has_no_other_hidden_states(layer):
    with pytest.raises(Unusable, match=f"there is no vision_feature_layer={layer}"):
        check_layer(layer, 2, "tower")


def test_another_kind_of_model_is_refused(tmp_path):
    BertConfig(hidden_size=8).save_pretrained(tmp_path)
    with pytest.raises(Unusable, match="is a bert model; it must be CLIP or SigLIP"):
        tower_config(str(tmp_path))
