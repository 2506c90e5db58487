import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vlm.model.footprint import language_bytes, outline, outline_of, vision_bytes


def really_saved(run, model) -> int:
    """Bytes that autograd keeps on a CPU, counted by the memory they lie in."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)


@pytest.mark.parametrize("trains", [True, False], ids=["trains", "frozen"])
def test_the_bytes_counted_without_memory_are_those_kept_with_it(tiny_model, trains):
    real = LlavaForConditionalGeneration.from_pretrained(tiny_model).train()
    counted = outline_of(tiny_model)
    for model in (real, counted):
        model.requires_grad_(trains)
    words = torch.randn(3, 200, real.config.text_config.hidden_size, requires_grad=True)
    found = really_saved(
        lambda: real.model.language_model(inputs_embeds=words * 1, use_cache=False).last_hidden_state, real
    )
    assert language_bytes(counted, 3, 200, torch.float32) == pytest.approx(found, rel=0.03)


def test_a_tower_that_trains_keeps_more_and_pictures_count_alike(tiny_model):
    llava = outline_of(tiny_model)
    frozen = vision_bytes(llava, 4, torch.float32, trains_tower=False)
    assert vision_bytes(llava, 4, torch.float32, trains_tower=True) > 2 * frozen
    assert vision_bytes(llava, 8, torch.float32, trains_tower=False) == pytest.approx(2 * frozen, rel=0.01)


def test_configs_alone_give_the_parameters_of_the_assembled_model(tiny_model_config, tiny_model):
    sizes = [
        {n: w.shape for n, w in llava.named_parameters()}
        for llava in (outline(tiny_model_config), outline_of(tiny_model))
    ]
    assert sizes[0].keys() == sizes[1].keys()
    different = {name for name in sizes[0] if sizes[0][name] != sizes[1][name]}
    assert all("embed_tokens" in name or "lm_head" in name for name in different)  # rows for <image> may be added
