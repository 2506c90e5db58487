from dataclasses import replace

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vlm.config import Recompute
from vlm.model.attention import attend_within_samples, told_of
from vlm.model.footprint import outline_of
from vlm.model.recomputed import keep_inputs_alone
from vlm.train.activations import activations_of
from vlm.train.workload import Workload

ROWS, LENGTH = 2, 200
WORK = Workload(rows=ROWS, length=LENGTH, batch_images=0)


def really_saved(llava, words, positions) -> int:
    """Bytes that autograd keeps on a CPU for the language model's backward pass."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*llava.parameters(), *llava.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend_within_samples(llava.model.language_model)
        language_model = llava.model.language_model
        told = told_of(positions, language_model.config, torch.device("cpu"))
        language_model(inputs_embeds=(words * 1).view(1, ROWS * LENGTH, -1), use_cache=False, **told)
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)


@pytest.mark.parametrize("recompute", [Recompute.none, Recompute.selective])
@pytest.mark.parametrize("packing", [False, True], ids=["unpacked", "packed"])
def test_the_bytes_kept_are_in_proportion_to_tokens_in_a_pack_too(tiny_model, packing, recompute):
    llava = LlavaForConditionalGeneration.from_pretrained(tiny_model).train()
    if recompute is Recompute.selective:
        keep_inputs_alone(llava.model.language_model)
    lengths = [LENGTH // 3, LENGTH - LENGTH // 3] if packing else [LENGTH]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].expand(ROWS, -1)
    words = torch.randn(ROWS, LENGTH, llava.config.text_config.hidden_size, requires_grad=True)
    each = activations_of(outline_of(tiny_model), torch.float32, trains_tower=False, is_gpu=False)
    found = really_saved(llava, words, positions)
    # on a CPU each sample's own attention is kept beside that of its pack
    assert each.kept(WORK, recompute) == pytest.approx(found, rel=0.08 if packing else 0.05)


def test_recomputing_keeps_less_and_one_layer_once_more(tiny_model):
    each = activations_of(outline_of(tiny_model), torch.float32, trains_tower=True, is_gpu=False)
    kept = [each.kept(WORK, how) for how in (Recompute.full, Recompute.selective, Recompute.none)]
    assert kept == sorted(kept) and len(set(kept)) == 3
    assert each.again(WORK, Recompute.none) == 0
    assert each.again(WORK, Recompute.full) >= each.back(WORK) > 0
    with_pictures = replace(WORK, batch_images=3)
    assert each.kept(with_pictures, Recompute.full) == kept[0] + 3 * each.pictures


def test_a_gpu_keeps_the_inputs_of_norms_alone_and_selective_the_gates_too(tiny_model):
    on_cpu, on_gpu = (
        activations_of(outline_of(tiny_model), torch.bfloat16, trains_tower=False, is_gpu=is_gpu).layers
        for is_gpu in (False, True)
    )
    assert on_gpu[Recompute.none] < on_cpu[Recompute.none]
    assert on_gpu[Recompute.selective] == on_cpu[Recompute.selective] < on_gpu[Recompute.none]
