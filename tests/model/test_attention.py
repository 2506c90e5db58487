import inspect

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from vlm.model import attention
from vlm.model.attention import PACKED, Packs, attend_within_samples, by_sample, kernel_for, told_of

POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 0, 1]])
LENGTHS = [4, 2, 3, 7, 2]
CPU = torch.device("cpu")


def states(heads: int = 4, groups: int = 2) -> list[Tensor]:
    """Return query, key and value of 18 tokens, (T, H, D)."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(18, each, 8, generator=draw, requires_grad=True) for each in (heads, groups, groups)]


def written_out(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Return attention by its formula, over a dense mask."""
    sample = torch.repeat_interleave(torch.arange(5), torch.tensor(LENGTHS))
    at = torch.arange(18)
    seen = (sample[:, None] == sample) & (at[:, None] >= at)
    if window:
        seen &= at[:, None] - at < window
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * 8**-0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


def test_bounds_are_where_positions_begin_anew():
    bounds = told_of(POSITIONS, LlamaConfig(), CPU)
    assert bounds["cu_seq_lens_q"].tolist() == [0, 4, 6, 9, 16, 18]
    assert bounds["cu_seq_lens_q"].dtype == torch.int32
    assert bounds["max_length_q"] == bounds["max_length_k"] == 7


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("window", [None, 3])
def test_every_sample_attends_by_itself(window, groups):
    bounds = told_of(POSITIONS, LlamaConfig(), CPU)
    ours, theirs = states(groups=groups), states(groups=groups)
    found = by_sample(*ours, Packs(bounds["cu_seq_lens_q"], 7, window))
    expected = written_out(*theirs, window)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6)


def model_of(config_class: type, model_class: type, **more) -> torch.nn.Module:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = config_class(vocab_size=50, num_key_value_heads=2, initializer_range=0.3, **shape, **more)
    return model_class(config).eval()


@pytest.mark.parametrize(
    "model", [(LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM, 3)], ids=["llama", "window of 3"]
)
def test_a_pack_has_the_states_of_its_samples_and_a_sliding_window_slides_in_each(model):
    config, kind, *window = model
    llm = model_of(config, kind, **({"sliding_window": window[0]} if window else {})).model
    words = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(2))
    whole, alone = words.flatten().split(LENGTHS), []
    with torch.no_grad():
        for sample in whole:
            alone.append(llm(input_ids=sample[None], use_cache=False).last_hidden_state[0])
        attend_within_samples(llm)
        packed = llm(input_ids=words.view(1, -1), use_cache=False, **told_of(POSITIONS, llm.config, CPU))
    assert llm.config._attn_implementation == PACKED
    assert torch.allclose(packed.last_hidden_state.flatten(0, 1), torch.cat(alone), atol=1e-5)


def test_a_model_that_trained_on_packs_answers_as_before():
    """Generation has padding and a cache instead of bounds."""
    llm = model_of(LlamaConfig, LlamaForCausalLM)
    words, mask = torch.randint(50, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    asked = {"input_ids": words, "attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    asked |= {"output_scores": True, "return_dict_in_generate": True, "pad_token_id": 0}
    before = llm.generate(**asked)
    attend_within_samples(llm.model)
    after = llm.generate(**asked)
    assert torch.equal(before.sequences, after.sequences)
    assert all(map(torch.equal, before.scores, after.scores))


@pytest.mark.parametrize(("chosen", "cap"), [("eager", None), ("sdpa", 50.0)])
def test_another_attention_stands_and_so_does_that_of_a_model_that_caps_its_scores(chosen, cap):
    llm = model_of(LlamaConfig, LlamaForCausalLM, attn_implementation=chosen, attn_logit_softcapping=cap).model
    attend_within_samples(llm)
    assert llm.config._attn_implementation == chosen


class OnGpu:
    """As much of a query on a GPU as the choice of a kernel looks at."""

    is_cuda, device = True, None

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype = (1, 4, 18, size), dtype


@pytest.mark.parametrize(
    ("size", "dtype", "capability", "dropout", "installed", "chosen"),
    [
        (128, torch.bfloat16, (8, 0), 0.0, True, "by_flash_attn"),
        (128, torch.bfloat16, (9, 0), 0.0, False, "by_torch"),
        (128, torch.bfloat16, (8, 0), 0.1, False, "by_sample"),
        (128, torch.float32, (9, 0), 0.0, True, "by_sample"),
        (128, torch.float16, (7, 5), 0.0, True, "by_sample"),
        (20, torch.bfloat16, (9, 0), 0.0, False, "by_sample"),
        (320, torch.bfloat16, (9, 0), 0.0, True, "by_sample"),
    ],
)
def test_the_kernel_goes_by_device_type_and_head(monkeypatch, size, dtype, capability, dropout, installed, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention, "flash_attn_varlen_func", print if installed else None)
    assert kernel_for(OnGpu(size, dtype), dropout) is getattr(attention, chosen)
    assert kernel_for(torch.zeros(1, 4, 18, size, dtype=dtype), dropout) is by_sample


@pytest.mark.parametrize("window", [None, 3])
def test_torchs_varlen_attention_is_called_by_its_own_signature(monkeypatch, window):
    """The kernel has no CPU form; its arguments are bound as torch declares them and answered by the formula."""

    def stand_in(*given, **named) -> Tensor:
        call = inspect.signature(varlen_attn).bind(*given, **named).arguments
        assert call["cu_seq_q"].tolist() == call["cu_seq_k"].tolist() == [0, 4, 6, 9, 16, 18]
        assert (call["max_q"], call["max_k"], call["enable_gqa"]) == (7, 7, True)
        left, right = call["window_size"]
        assert right == 0
        packs = Packs(call["cu_seq_q"], 7, left + 1 or None, call["scale"])
        return by_sample(call["query"], call["key"], call["value"], packs)

    monkeypatch.setattr(attention.varlen, "varlen_attn", stand_in)
    found = attention.by_torch(
        *states(), Packs(told_of(POSITIONS, LlamaConfig(), CPU)["cu_seq_lens_q"], 7, window, 8**-0.5)
    )
    assert torch.allclose(found, written_out(*states(), window), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("size", [64, 80, 128])
@pytest.mark.parametrize("window", [None, 100])
def test_the_kernel_for_packs_on_a_gpu_gives_what_every_sample_gives_by_itself(window, size, groups):
    lengths = torch.tensor([700, 3, 1, 250, 94])
    ends = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int().cuda()
    draw = torch.Generator("cuda").manual_seed(0)
    exact = [torch.randn(1048, each, size, generator=draw, device="cuda") for each in (4, groups, groups)]
    weights = torch.randn(1048, 4, size, generator=draw, device="cuda")
    exact = [one.bfloat16().float().requires_grad_() for one in exact]
    rounded = [one.detach().bfloat16().requires_grad_() for one in exact]
    packs = Packs(ends, 700, window)
    kernel = kernel_for(rounded[0].unflatten(0, (1, 1048)), 0.0)
    assert kernel is not by_sample
    expected, found = by_sample(*exact, packs), kernel(*rounded, packs)
    (expected * weights).sum().backward()
    (found * weights.bfloat16()).sum().backward()
    for ours, theirs in [(found, expected), *((mine.grad, one.grad) for mine, one in zip(rounded, exact, strict=True))]:
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()
