"""Assembling holds no more than one copy of the model in memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from vlm.model.tokenizer import patch
from vlm.model.weights import write

BOUND = 1.15  # of the pair's size in bfloat16
MEASURE = """
import json, sys
from pathlib import Path
from vlm.config import ModelConfig
from vlm.model.build import build
def peak():  # of this program alone: getrusage would count what its parent held when it was started
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
language, tower, tokenizer, out = sys.argv[1:]
before = peak()
figures = build(ModelConfig(language_model=language, vision_tower=tower), Path(tokenizer), 0, Path(out))
print(json.dumps({"peak": peak() - before, **figures}))
"""


@pytest.fixture
def scratch(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_peak_is_within_the_bound_for_half_a_billion_parameters(scratch, tiny_language_model, tiny_tower, dtype):
    language = scratch / "language_model"
    config = Qwen2Config(
        vocab_size=50_000,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    AutoTokenizer.from_pretrained(tiny_language_model).save_pretrained(language)
    config.save_pretrained(language)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in AutoModelForCausalLM.from_config(config).state_dict().items()}
    noise = torch.randn(1 << 24) * 0.02
    write(
        language / "model.safetensors",
        shapes,
        dtype,
        lambda name: noise.repeat(-(-shapes[name].numel() >> 24) + 1)[: shapes[name].numel()].reshape(shapes[name]),
    )
    patch(str(language), "<image>", scratch / "tokenizer")

    command = [sys.executable, "-c", MEASURE, language, tiny_tower, scratch / "tokenizer", scratch / "model"]
    said = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    figures = json.loads(said.splitlines()[-1])
    parameters = sum(count for name, count in figures.items() if name.endswith("_parameters"))
    ratio = figures["peak"] / (2 * parameters)
    print(
        f"{parameters / 1e9:.2f} B parameters from {dtype}: peak {figures['peak'] / 2**30:.2f} GiB, {ratio:.3f} of bf16"
    )
    assert parameters >= 5e8
    assert ratio <= BOUND
