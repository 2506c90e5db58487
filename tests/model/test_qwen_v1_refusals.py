import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.errors import Unusable
from vlm.model import qwen_v1
from vlm.model.qwen_v1 import convert, layout

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "model_type": "qwen",
    "vocab_size": 464,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "kv_channels": 4,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "seq_length": 64,
}
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


@pytest.fixture
def source(tmp_path):
    """A whole v1 folder of two weight files, and the least that its other files may hold."""
    folder = tmp_path / "v1"
    folder.mkdir()
    weights = {name: torch.randn(piece.shape) for name, piece in layout(SETTINGS).items()}
    shards = {FIRST: sorted(weights)[::2], SECOND: sorted(weights)[1::2]}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    (folder / "generation_config.json").write_text("{}")
    ranks = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "qwen.tiktoken").write_text("".join(ranks))
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "native"


def refused(source, out, line):
    with pytest.raises(Unusable, match=line) as refusal:
        convert(source, out)
    assert "\n" not in str(refusal.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2', not 'qwen'"),
        ({"quantization_config": {}}, "is quantised"),
        ({"no_bias": False}, "no_bias is False"),
        ({"kv_channels": 16}, "kv_channels times num_attention_heads"),
        ({"seq_length": None}, "seq_length is None, not a count"),
        ({"rotary_emb_base": "10000"}, "rotary_emb_base is '10000', not a number"),
        ({"intermediate_size": 6}, "has the shape .*, and config.json asks for"),
        ({"num_hidden_layers": 1}, r"transformer\.h\.1\..* is no weight of the language model"),
        ({"num_hidden_layers": 3}, r"transformer\.h\.2\..* 8 missing in all"),
        ({"vocab_size": 151_936}, "has the shape"),
    ],
)
def test_settings_of_another_model_are_refused_in_one_line(source, out, change, line):
    (source / "config.json").write_text(json.dumps(SETTINGS | change))
    refused(source, out, line)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("config.json", None, "config.json is not there"),
        ("config.json", "{", "config.json is no JSON"),
        ("config.json", "[]", "holds no settings"),
        ("generation_config.json", "{", "generation_config.json is no JSON"),
        ("qwen.tiktoken", None, "qwen.tiktoken is not there"),
        ("qwen.tiktoken", "YQ== 0\n", "256 single bytes"),
        (SECOND, None, f"{SECOND} is not there"),
        (SECOND, "{}", f"{SECOND} cannot be read"),
    ],
)
def test_a_missing_or_damaged_file_is_refused_in_one_line(source, out, name, content, line):
    (source / name).unlink()
    if content is not None:
        (source / name).write_text(content)
    refused(source, out, line)


@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.h.1.attn.c_attn.bias"])
def test_a_missing_weight_is_named(source, out, name):
    for file in (FIRST, SECOND):
        save_file({kept: weight for kept, weight in load_file(source / file).items() if kept != name}, source / file)
    refused(source, out, f"{name} is in none of the files; 1 missing in all")


def test_a_folder_that_is_there_is_never_overwritten(source, out):
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(Unusable, match="native exists: delete it"):
        convert(source, out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_the_source_is_never_taken_for_what_an_interruption_left(source, out):
    partial = source.rename(out.with_name("native.partial"))
    with pytest.raises(Unusable, match="would be overwritten"):
        convert(partial, out)
    assert (partial / "config.json").is_file()


@pytest.mark.parametrize("step", ["write_cuts", "_write_small_files", "_publish"])
def test_an_interrupted_conversion_leaves_no_folder_and_can_be_run_again(source, out, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(qwen_v1, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(source, out)
    assert not out.exists()
    (out.with_name("native.partial") / "stale.safetensors").write_text("")
    convert(source, out)
    assert not (out / "stale.safetensors").exists()
    assert (out / "config.json").is_file()


def test_a_full_disk_is_said_in_one_line(source, out, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(qwen_v1, "write_cuts", fail)
    with pytest.raises(Unusable, match=r"native\.partial: No space left on device$"):
        convert(source, out)
    assert not out.exists()


def test_the_command_converts_and_says_what_it_made(source, out, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwen_v1", str(source), str(out)])
    qwen_v1.main()
    assert re.search(r"native: [\d,]+ weights in 1 files, 464 tokens\n$", capsys.readouterr().out)


def test_the_command_refuses_in_one_line_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "vlm.model.qwen_v1", str(tmp_path / "none"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1
    assert re.fullmatch(r".*none/config\.json is not there: .*\n", ended.stderr)
    assert ended.stdout == ""
