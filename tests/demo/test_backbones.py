"""The backbones after two steps: folders that transformers loads, and the same weights again."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from vlm.demo.backbones import LanguageSettings, TowerSettings, train_language_model, train_tower
from vlm.demo.language import encode, gather
from vlm.demo.prose import Span
from vlm.demo.training import Training

TOWER = TowerSettings(pictures=40, training=Training(steps=2, batch=8, lr=1e-3))
LANGUAGE = LanguageSettings(training=Training(steps=2, batch=4, lr=1e-3), tokenizer_documents=200)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision_tower")
    train_tower(folder, 0, TOWER)
    return folder


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language_model")
    train_language_model(folder, 0, LANGUAGE)
    return folder


def test_tower_loads_and_sees(tower: Path) -> None:
    model, processor = AutoModel.from_pretrained(tower), AutoImageProcessor.from_pretrained(tower)
    assert model.config.model_type == "clip_vision_model"
    pixels = processor(torch.zeros(3, 64, 64, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    assert model(pixels).last_hidden_state.shape == (1, 1 + 16, model.config.hidden_size)


def test_tower_is_the_same_again(tower: Path, tmp_path: Path) -> None:
    train_tower(tmp_path, 0, TOWER)
    assert (tmp_path / "model.safetensors").read_bytes() == (tower / "model.safetensors").read_bytes()


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


def test_tokenizer_speaks_chat_and_knows_no_image(language_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Où?"}], tokenize=False, add_generation_prompt=True
    )
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert chat == f"{system}<|im_start|>user\nOù?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(chat)["input_ids"]) == chat
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert "<image>" not in tokenizer.get_vocab()
    assert len(tokenizer) + 1 <= AutoModelForCausalLM.from_pretrained(language_model).config.vocab_size


def test_a_folded_span_is_read_as_the_sum_of_its_tokens(language_model: Path) -> None:
    model, tokenizer = (kind.from_pretrained(language_model) for kind in (AutoModelForCausalLM, AutoTokenizer))
    reading = encode(tokenizer, [Span(" red circle", folded=True), Span("yes", learnt=True)])
    embeddings, targets = gather(model, [reading], fold_noise=0.0)
    words = model.get_input_embeddings()(torch.tensor(tokenizer(" red circle")["input_ids"]))
    torch.testing.assert_close(embeddings[0, 0], words.sum(0))
    assert targets[0].tolist() == [-100, *tokenizer("yes")["input_ids"]]


def test_the_corpus_needs_no_torch() -> None:
    seen = "import sys, vlm.demo.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", seen]).returncode == 0
