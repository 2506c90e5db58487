"""The language model after two steps: a folder that transformers loads, and the same weights again."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vlm.demo.language import encode, gather, train_language_model
from vlm.demo.prose import Span

from .conftest import LANGUAGE


def test_language_model_loads_and_writes(language_model: Path) -> None:
    model, tokenizer = (kind.from_pretrained(language_model) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.model_type == "qwen2"
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    ids = tokenizer("a red circle", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] <= ids.shape[1] + 2


def test_language_model_is_the_same_again(language_model: Path, tmp_path: Path) -> None:
    train_language_model(tmp_path, 0, LANGUAGE)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (language_model / name).read_bytes()


def test_a_folded_span_is_read_as_the_sum_of_its_tokens(language_model: Path) -> None:
    model, tokenizer = (kind.from_pretrained(language_model) for kind in (AutoModelForCausalLM, AutoTokenizer))
    reading = encode(tokenizer, [Span(" red circle", folded=True), Span("yes", learnt=True)])
    embeddings, targets = gather(model, [reading], fold_noise=0.0)
    words = model.get_input_embeddings()(torch.tensor(tokenizer(" red circle")["input_ids"]))
    torch.testing.assert_close(embeddings[0, 0], words.sum(0))
    assert targets[0].tolist() == [-100, *tokenizer("yes")["input_ids"]]
