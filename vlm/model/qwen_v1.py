"""Qwen v1 checkpoints (Qwen-7B, Qwen-7B-Chat and their sizes; model_type "qwen") in the native layout of Qwen2.

    python -m vlm.model.qwen_v1 SRC OUT [--allow-pickle]

Qwen v1 was published with its own code, which nothing here runs: settings, weights and vocabulary are read as data.
Its architecture is Qwen2's with a key and value head for each query head, under other names:

    transformer.wte                      model.embed_tokens
    transformer.h.N.ln_1, ln_2           model.layers.N.input_layernorm, post_attention_layernorm
    transformer.h.N.attn.c_attn          self_attn.q_proj, k_proj, v_proj  (rows in this order; the only biases)
    transformer.h.N.attn.c_proj          self_attn.o_proj
    transformer.h.N.mlp.w1, w2, c_proj   mlp.up_proj, gate_proj, down_proj:  c_proj(w1(x) * silu(w2(x)))
    transformer.ln_f, lm_head            model.norm, lm_head

Its intermediate_size is twice the width of w1. Up to `seq_length` tokens both compute the same. Beyond, v1 stretched
its rotary base (use_dynamic_ntk) and scaled its queries (use_logn_attn) at inference; the native model does neither,
so seq_length becomes its max_position_embeddings.
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from vlm.errors import Unusable
from vlm.model.qwen_v1_tokenizer import (
    END_OF_TEXT,
    TURN_END,
    VOCABULARY,
    build_tokenizer,
    find_merges,
    read_ranks,
    save_tokenizer,
)
from vlm.model.qwen_v1_weights import Piece, find_files, plan_cuts, widest_dtype, write_cuts

ASSUMED = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True, "tie_word_embeddings": False}
COUNTS = (
    "hidden_size",
    "intermediate_size",
    "kv_channels",
    "num_attention_heads",
    "num_hidden_layers",
    "seq_length",
    "vocab_size",
)
SAMPLING = ("do_sample", "max_new_tokens", "repetition_penalty", "temperature", "top_k", "top_p")
BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|attn\.(bias|masked_bias|logn_tensor))$")  # computed, yet stored by some


def convert(source: Path, out: Path, allow_pickle: bool = False) -> dict[str, int]:
    """Write the folder of a Qwen2ForCausalLM with its fast tokenizer; return how many files, tokens and weights.

    `out` is there only once it is whole: until then it is OUT.partial, which a later call begins anew.
    Raises Unusable if `out` exists, `source` is no v1 checkpoint, or a part of it is missing or damaged.
    """
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        raise Unusable(f"{out} exists: delete it, or choose another folder")
    if source.resolve().is_relative_to(partial.resolve()):
        raise Unusable(f"{source} would be overwritten on the way to {out}: choose another folder")
    try:
        settings = read_settings(source)
        cuts = plan_cuts(find_files(source, allow_pickle), layout(settings), BUFFERS)
        tokens = read_ranks(source / VOCABULARY, settings["vocab_size"])
        tokenizer = build_tokenizer(tokens, find_merges(tokens))
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        _write_small_files(source, settings, widest_dtype(cuts), tokenizer, partial)
        files = write_cuts(cuts, partial, f"{out.name}: converting")
        _publish(partial, out)
    except OSError as problem:
        raise Unusable(f"{problem.filename or partial}: {problem.strerror or problem}") from None
    weights = sum(torch.Size(cut.shape).numel() for cut in cuts)
    return {"files": files, "tokens": tokenizer.get_vocab_size(), "weights": weights}


def read_settings(source: Path) -> dict[str, Any]:
    """Return a v1 model's config.json once it is known to be one that Qwen2 can express.

    Raises Unusable if it is not there, of another model type, incomplete, quantised, or unlike every v1 model.
    """
    path = source / "config.json"
    if not path.is_file():
        raise Unusable(f"{path} is not there: SRC is the folder of a downloaded Qwen v1 model")
    settings = _read_json(path)
    if settings.get("model_type") != "qwen":
        raise Unusable(f"{path}: model_type is {settings.get('model_type')!r}, not 'qwen': not a Qwen v1 model")
    if "quantization_config" in settings:
        raise Unusable(f"{path}: the model is quantised: convert the one it was made from")
    for name in COUNTS:
        if type(settings.get(name)) is not int or settings[name] < 1:
            raise Unusable(f"{path}: {name} is {settings.get(name)!r}, not a count")
    for name in ("layer_norm_epsilon", "rotary_emb_base"):
        if type(settings.get(name)) not in (int, float):
            raise Unusable(f"{path}: {name} is {settings.get(name)!r}, not a number")
    for name, value in ASSUMED.items():
        if settings.get(name, value) != value:
            raise Unusable(f"{path}: {name} is {settings[name]!r}; Qwen2 has only {value!r}")
    if settings["kv_channels"] * settings["num_attention_heads"] != settings["hidden_size"]:
        raise Unusable(f"{path}: kv_channels times num_attention_heads is not hidden_size, as in every v1 model")
    return settings


def layout(settings: Mapping[str, Any]) -> dict[str, Piece]:
    """Return what becomes of each weight of a v1 model: its shape and its native names."""
    width, inner = settings["hidden_size"], settings["intermediate_size"] // 2
    pieces = {
        "transformer.wte.weight": Piece((settings["vocab_size"], width), ("model.embed_tokens.weight",)),
        "transformer.ln_f.weight": Piece((width,), ("model.norm.weight",)),
        "lm_head.weight": Piece((settings["vocab_size"], width), ("lm_head.weight",)),
    }
    for number in range(settings["num_hidden_layers"]):
        old, new = f"transformer.h.{number}.", f"model.layers.{number}."
        fused = tuple(f"{new}self_attn.{part}_proj." for part in "qkv")
        pieces |= {
            f"{old}ln_1.weight": Piece((width,), (f"{new}input_layernorm.weight",)),
            f"{old}ln_2.weight": Piece((width,), (f"{new}post_attention_layernorm.weight",)),
            f"{old}attn.c_attn.weight": Piece((3 * width, width), tuple(f"{part}weight" for part in fused)),
            f"{old}attn.c_attn.bias": Piece((3 * width,), tuple(f"{part}bias" for part in fused)),
            f"{old}attn.c_proj.weight": Piece((width, width), (f"{new}self_attn.o_proj.weight",)),
            f"{old}mlp.w1.weight": Piece((inner, width), (f"{new}mlp.up_proj.weight",)),
            f"{old}mlp.w2.weight": Piece((inner, width), (f"{new}mlp.gate_proj.weight",)),
            f"{old}mlp.c_proj.weight": Piece((width, inner), (f"{new}mlp.down_proj.weight",)),
        }
    return pieces


def native_settings(settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return the config.json of the same model as Qwen2, less its token ids."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": settings["vocab_size"],
        "hidden_size": settings["hidden_size"],
        "intermediate_size": settings["intermediate_size"] // 2,
        "num_hidden_layers": settings["num_hidden_layers"],
        "num_attention_heads": settings["num_attention_heads"],
        "num_key_value_heads": settings["num_attention_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": settings["seq_length"],
        "rms_norm_eps": settings["layer_norm_epsilon"],
        "rope_theta": float(settings["rotary_emb_base"]),
        "attention_dropout": settings.get("attn_dropout_prob", 0.0),
        "initializer_range": settings.get("initializer_range", 0.02),
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "bos_token_id": None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _write_small_files(
    source: Path, settings: Mapping[str, Any], dtype: torch.dtype, tokenizer: Tokenizer, out: Path
) -> None:
    """Write tokenizer, settings and licences; a model that was not trained to chat ends its texts with END_OF_TEXT."""
    path = source / "generation_config.json"
    generation = _read_json(path) if path.is_file() else {}
    end = END_OF_TEXT if generation.get("chat_format") == "raw" else TURN_END
    ids = {"eos_token_id": tokenizer.token_to_id(end), "pad_token_id": tokenizer.token_to_id(END_OF_TEXT)}
    ends = {"eos_token_id": sorted(set(ids.values()), reverse=True)}
    save_tokenizer(tokenizer, out, end, settings["seq_length"])
    _write_json(out / "config.json", native_settings(settings, dtype) | ids)
    sampling = {name: generation[name] for name in SAMPLING if name in generation}
    _write_json(out / "generation_config.json", sampling | ids | ends)
    for licence in [*source.glob("LICENSE*"), *source.glob("NOTICE*")]:
        if licence.is_file():
            shutil.copyfile(licence, out / licence.name)


def _publish(partial: Path, out: Path) -> None:
    """Give the folder its name once what it holds is on the disk."""
    for path in [*partial.iterdir(), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    partial.rename(out)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise Unusable(f"{path} is no JSON: {problem}") from None
    if not isinstance(read, dict):
        raise Unusable(f"{path} holds no settings by name")
    return read


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def main() -> None:
    """Convert the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m vlm.model.qwen_v1", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of a Qwen v1 model")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, which must not exist")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read .bin files too, as data (torch.load with weights_only)"
    )
    asked = parser.parse_args()
    try:
        made = convert(asked.source, asked.out, asked.allow_pickle)
    except Unusable as problem:
        raise SystemExit(str(problem)) from None
    print(f"{asked.out}: {made['weights']:,} weights in {made['files']} files, {made['tokens']:,} tokens")


if __name__ == "__main__":
    main()
