"""Against a real server: `transformers serve` with a language model made here. Needs what the extra `chat` brings."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from vlm.config import AnswerFormat, DataConfig, KindConfig, SourceConfig, SplitConfig
from vlm.data.index import Split
from vlm.data.shards import build
from vlm.instruct.run import generate

pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn: pip install -e '.[chat]'")
pytest.importorskip("uvicorn", reason="transformers serve needs fastapi and uvicorn: pip install -e '.[chat]'")

SAID = "What is blue"  # no token of it comes twice
SERVE = "import sys; from transformers.cli.transformers import main; sys.exit(main())"


@pytest.fixture(scope="module")
def parrot(tiny_language_model, tmp_path_factory):
    """The tiny language model, made to say SAID whatever it is asked: the last token alone decides the next."""
    folder = tmp_path_factory.mktemp("parrot")
    tokenizer = AutoTokenizer.from_pretrained(tiny_language_model)
    model = Qwen2ForCausalLM.from_pretrained(tiny_language_model)
    start = tokenizer.encode("assistant\n", add_special_tokens=False)[-1]
    chain = [start, *tokenizer.encode(SAID, add_special_tokens=False), tokenizer.eos_token_id]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        vectors = torch.nn.init.orthogonal_(torch.empty(len(chain), model.config.hidden_size))
        model.model.embed_tokens.weight[chain] = vectors
        model.lm_head.weight.zero_()
        model.lm_head.weight[chain[1:]] = 50 * vectors[:-1]
    assert len({*chain}) == len(chain)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(parrot):
    """The base_url of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["serve", str(parrot), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", SERVE, *options], env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_real_server_is_asked_and_stage_02_reads_what_came_back(
    served, parrot, settings, captioned, tiny_tokenizer, tiny_chat, tmp_path, stream
):
    cfg = settings(limit=2, stream=stream, timeout=60.0)
    cfg.model, cfg.runtime.base_url = str(parrot), served
    cfg.kinds = cfg.kinds | {
        "short": KindConfig("Say what is there.", format=AnswerFormat.text, questions=["What is it?"])
    }
    figures = generate(cfg, 0, tiny_tokenizer, tmp_path / "cache", tmp_path)
    assert (figures["samples"], figures["rejected"]) == (2, 6)
    assert {*figures["reasons"]} == {"format", "length"}  # the other kinds want more than three words
    calls = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert {(call["answer"], call["finish"]) for call in calls} == {(SAID, "stop")}
    tokenizer = AutoTokenizer.from_pretrained(parrot)
    for call in calls:
        ids = tokenizer.apply_chat_template(call["messages"], add_generation_prompt=True, return_dict=False)
        assert call["prompt_tokens"] == len(ids)
    made = SourceConfig(path=str(tmp_path / "corpora/captions.json"), images=captioned.images)
    build(DataConfig(finetune=SplitConfig(sources=[made])), tiny_chat, 0, tmp_path / "shards")
    sample = Split(tmp_path / "shards/finetune").read(0).sample
    assert [turn.text for turn in sample.turns] == ["<image>\nWhat is it?", SAID]
