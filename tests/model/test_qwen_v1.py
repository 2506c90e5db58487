import base64
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import embedding, linear, silu
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from vlm.errors import Unusable
from vlm.model.qwen_v1 import convert, layout
from vlm.model.tokenizer import patch

ROWS, WIDTH, INNER, HEADS, LAYERS = 512, 32, 44, 4, 3
SETTINGS = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    "model_type": "qwen",
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * INNER,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "kv_channels": WIDTH // HEADS,
    "layer_norm_epsilon": 1e-2,  # large, so that a wrong one shows
    "rotary_emb_base": 300,
    "rotary_pct": 1.0,
    "seq_length": 64,
    "max_position_embeddings": 128,
    "no_bias": True,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


def random_weights(dtype):
    """Random weights under v1's names, written out here and not taken from the module under test."""
    shapes = {
        "transformer.wte.weight": (ROWS, WIDTH),
        "lm_head.weight": (ROWS, WIDTH),
        "transformer.ln_f.weight": (WIDTH,),
    }
    for number in range(LAYERS):
        block = f"transformer.h.{number}."
        shapes |= {block + "ln_1.weight": (WIDTH,), block + "ln_2.weight": (WIDTH,)}
        shapes |= {block + "attn.c_attn.weight": (3 * WIDTH, WIDTH), block + "attn.c_attn.bias": (3 * WIDTH,)}
        shapes |= {block + "attn.c_proj.weight": (WIDTH, WIDTH), block + "mlp.c_proj.weight": (WIDTH, INNER)}
        shapes |= {block + "mlp.w1.weight": (INNER, WIDTH), block + "mlp.w2.weight": (INNER, WIDTH)}
    random = torch.Generator().manual_seed(7)
    return {name: (torch.randn(shape, generator=random) * 0.3).to(dtype) for name, shape in shapes.items()}


def v1_logits(weights, ids):
    """The forward pass of v1: ids (L,) to logits (L, ROWS), in its own fused form."""
    length, channels = len(ids), WIDTH // HEADS

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + SETTINGS["layer_norm_epsilon"]).sqrt() * weights[name + ".weight"]

    speeds = SETTINGS["rotary_emb_base"] ** -(torch.arange(channels // 2, dtype=torch.float64) * 2 / channels)
    turns = torch.polar(torch.ones(1, dtype=torch.float64), torch.outer(torch.arange(length).double(), speeds))

    def rotate(x):  # (L, HEADS, channels): channel c and c + channels / 2 are one complex number
        turned = torch.complex(*x.double().chunk(2, dim=-1)) * turns[:, None]
        return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)

    x = embedding(ids, weights["transformer.wte.weight"])
    for number in range(LAYERS):
        block = f"transformer.h.{number}."
        fused = linear(
            norm(x, block + "ln_1"), weights[block + "attn.c_attn.weight"], weights[block + "attn.c_attn.bias"]
        )
        query, key, value = (part.reshape(length, HEADS, channels) for part in fused.split(WIDTH, dim=-1))
        scores = torch.einsum("qhc,khc->hqk", rotate(query), rotate(key)) / channels**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        mixed = torch.einsum("hqk,khc->qhc", scores.softmax(-1), value).reshape(length, WIDTH)
        x = x + linear(mixed, weights[block + "attn.c_proj.weight"])
        y = norm(x, block + "ln_2")
        a1, a2 = (linear(y, weights[f"{block}mlp.{name}.weight"]) for name in ("w1", "w2"))
        x = x + linear(a1 * silu(a2), weights[block + "mlp.c_proj.weight"])
    return linear(norm(x, "transformer.ln_f"), weights["lm_head.weight"])


def write_checkpoint(folder, dtype=torch.float32):
    """A v1 folder in two files, whose tensors lie in no order of the layers; return its weights."""
    folder.mkdir()
    weights = random_weights(dtype)
    shards = {FIRST: sorted(weights)[::2], SECOND: sorted(weights)[1::2]}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    (folder / "generation_config.json").write_text(
        json.dumps({"chat_format": "chatml", "top_p": 0.8, "eos_token_id": 1})
    )
    (folder / "modeling_qwen.py").write_text("raise SystemError('code of the checkpoint was run')")
    (folder / "LICENSE").write_text("terms")
    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b"the"]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (folder / "qwen.tiktoken").write_text("".join(lines))
    return weights


def rewritten(folder, change, file=FIRST):
    stored = load_file(folder / file)
    change(stored)
    save_file(stored, folder / file)


@pytest.fixture
def source(tmp_path):
    write_checkpoint(tmp_path / "v1")
    return tmp_path / "v1"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "native"


IDS = torch.tensor([5, 511, 256, 7, 7, 300, 0, 42, 99, 257, 12, 5])


def native_logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(model) is Qwen2ForCausalLM
    with torch.no_grad():
        return model(IDS[None]).logits[0]


@pytest.mark.parametrize("file_bytes", [5 * 10**9, 20_000], ids=["one file", "many files"])
def test_the_native_model_computes_what_v1_does(tmp_path, out, monkeypatch, file_bytes):
    weights = write_checkpoint(tmp_path / "v1")
    monkeypatch.setattr("vlm.model.qwen_v1_weights.MAX_FILE_BYTES", file_bytes)
    made = convert(tmp_path / "v1", out)
    expected = v1_logits(weights, IDS)
    assert expected.std() > 0.3
    torch.testing.assert_close(native_logits(out), expected, atol=1e-5, rtol=1e-5)
    assert made["weights"] == sum(weight.numel() for weight in weights.values())
    assert made["tokens"] == 258 + 208
    assert len(list(out.glob("*.safetensors"))) == made["files"]
    assert (made["files"] == 1) == (file_bytes > 10**9)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda weights: weights | {f"transformer.h.1.mlp.w{a}.weight": weights[f"transformer.h.1.mlp.w{3 - a}.weight"] for a in (1, 2)},
        lambda weights: weights | {"transformer.h.0.attn.c_attn.weight": weights["transformer.h.0.attn.c_attn.weight"].roll(WIDTH, 0)},
        lambda weights: weights | {"transformer.h.2.attn.c_attn.bias": weights["transformer.h.2.attn.c_attn.bias"].roll(WIDTH, 0)},
    ],
    ids=["gate and up", "q, k and v", "their biases"],
)  # fmt: skip
def test_the_comparison_would_see_parts_that_changed_places(tmp_path, out, wrong):
    weights = write_checkpoint(tmp_path / "v1")
    convert(tmp_path / "v1", out)
    assert (native_logits(out) - v1_logits(wrong(weights), IDS)).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_their_bits_and_type(tmp_path, out, dtype):
    weights = write_checkpoint(tmp_path / "v1", dtype)
    convert(tmp_path / "v1", out)
    native = AutoModelForCausalLM.from_pretrained(out)
    assert native.dtype == dtype
    state = native.state_dict()
    fused = weights["transformer.h.2.attn.c_attn.weight"]
    assert torch.equal(torch.cat([state[f"model.layers.2.self_attn.{part}_proj.weight"] for part in "qkv"]), fused)
    assert torch.equal(state["model.layers.1.mlp.gate_proj.weight"], weights["transformer.h.1.mlp.w2.weight"])
    assert torch.equal(state["lm_head.weight"], weights["lm_head.weight"])
    written = {name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert written == set(state) == set(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"])


def test_the_folder_is_whole_and_its_settings_are_those_of_v1(source, out):
    convert(source, out)
    config = json.loads((out / "config.json").read_text())
    assert (config["intermediate_size"], config["max_position_embeddings"], config["rope_theta"]) == (INNER, 64, 300.0)
    assert (config["eos_token_id"], config["pad_token_id"]) == (260, 258)
    assert json.loads((out / "generation_config.json").read_text()) == {
        "top_p": 0.8,
        "eos_token_id": [260, 258],
        "pad_token_id": 258,
    }
    assert (out / "LICENSE").read_text() == "terms"
    assert not list(out.glob("*.py"))
    assert not (out.parent / "native.partial").exists()


@pytest.mark.parametrize(
    ("chat_format", "end"), [("chatml", "<|im_end|>"), ("raw", "<|endoftext|>"), (None, "<|im_end|>")]
)
def test_a_base_model_ends_texts_and_a_chat_model_turns(source, out, chat_format, end):
    (source / "generation_config.json").write_text(json.dumps({"chat_format": chat_format} if chat_format else {}))
    convert(source, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token == end
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert tokenizer.encode("the<|im_end|>") == [257, 260]


def test_the_first_stage_can_add_its_picture_token(source, out, tmp_path):
    convert(source, out)
    assert patch(str(out), "<image>", tmp_path / "patched")["image_token_id"] == 258 + 208


def test_buffers_that_some_checkpoints_store_are_left_out(source, out):
    extra = {"transformer.rotary_emb.inv_freq": torch.ones(4), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewritten(source, lambda stored: stored.update(extra))
    convert(source, out)
    native_logits(out)


def test_pickles_are_refused_unless_allowed_and_give_the_same(tmp_path, source, out):
    convert(source, out)
    weights = random_weights(torch.float32)
    for path in source.glob("*.safetensors*"):
        path.unlink()
    torch.save(weights, source / "pytorch_model.bin")
    with pytest.raises(Unusable, match="pickles only.*--allow-pickle"):
        convert(source, tmp_path / "second")
    convert(source, tmp_path / "second", allow_pickle=True)
    files = [load_file(folder / "model-00001-of-00001.safetensors") for folder in (out, tmp_path / "second")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_the_layout_of_the_published_7b_has_its_weights():
    published = {"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32}
    pieces = layout(published)
    assert sum(torch.Size(piece.shape).numel() for piece in pieces.values()) == 7_721_324_544
    assert len(pieces) == 3 + 32 * 8
