"""Every family of language models with every kind of tower: assembled, through the gates, reloaded elsewhere."""

import itertools
import json
import subprocess
import sys

import pytest

from vlm.config import Dtype, ModelConfig
from vlm.model import fresh
from vlm.model.assemble import plan, write_model
from vlm.model.gates import model_gates, processor_gate, texts_of, weights_gate
from vlm.model.tokenizer import patch

TOKENS = {"tiny_tower": 4, "siglip_tower": 4, "siglip2_tower": 9}
PAIRS = list(itertools.product(["qwen2", "qwen2_5", "qwen3", "llama", "mistral", "gemma"], TOKENS))
RELOAD = """
import json, sys, numpy as np, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
for folder in sys.argv[1:]:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(folder)
    pictures = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    inputs = processor(images=pictures, text="<image>What?", return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    print(json.dumps({
        "model": type(model).__name__,
        "processor": type(processor).__name__,
        "wrong": sum(map(len, (info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]))),
        "images": int((inputs["input_ids"] == model.config.image_token_id).sum()),
        "wrote": written.shape[1] - inputs["input_ids"].shape[1],
        "tied": model.lm_head.weight is model.get_input_embeddings().weight,
    }))
"""


@pytest.fixture(scope="module")
def assembled(family, request, tmp_path_factory):
    """The plan, folder and tokenizer figures of each pair."""
    made = {}
    for language, tower in PAIRS:
        folder = tmp_path_factory.mktemp("pair")
        figures = patch(str(family(language)), "<image>", folder / "tokenizer")
        model = ModelConfig(
            language_model=str(family(language)),
            vision_tower=str(request.getfixturevalue(tower)),
            dtype=Dtype.bfloat16 if language == "qwen3" else Dtype.float32,
        )
        ready = plan(model, folder / "tokenizer")
        write_model(ready, model, 0, folder / "model")
        made[language, tower] = ready, folder / "model", figures
    return made


@pytest.fixture(scope="module")
def seen(assembled):
    """What one fresh process saw of each pair's processor: all have the same texts, so it may look at them in turn."""
    ready = next(iter(assembled.values()))[0]
    return dict(
        zip(assembled, fresh.ask([folder for _, folder, _ in assembled.values()], texts_of(ready)), strict=True)
    )


@pytest.fixture(scope="module")
def reloaded(assembled):
    """What a fresh process with transformers alone says of each pair."""
    command = [sys.executable, "-c", RELOAD, *(str(folder) for _, folder, _ in assembled.values())]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(zip(assembled, map(json.loads, filter(None, said.splitlines())), strict=True))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_passes_the_gates(assembled, seen, pair):
    ready, folder, figures = assembled[pair]
    assert processor_gate(ready, seen[pair]) == {"texts_returned": 7, "texts_returned_as_by_the_source": 0}
    assert weights_gate(ready, folder)["weights_compared"] == len(ready.shapes) - 4
    found = model_gates(ready, folder)
    assert found["tower_features_difference"] == 0
    assert found["text_logits_difference"] < 1e-6
    assert ready.image_id == figures["image_token_id"]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_loads_in_a_fresh_process(assembled, reloaded, pair):
    assert reloaded[pair] == {
        "model": "LlavaForConditionalGeneration",
        "processor": "LlavaProcessor",
        "wrong": 0,
        "images": TOKENS[pair[1]],
        "wrote": reloaded[pair]["wrote"],
        "tied": pair[0] in ("qwen2_5", "qwen3", "gemma"),
    }
    assert 1 <= reloaded[pair]["wrote"] <= 2
