"""Random models of a true model's proportions, and corpora of stated lengths, for benchmarks of training.

A scaled model has a tenth of the widths and a quarter of the layers of CLIP-L/14-336 + Qwen1.5-4B, and as many rows
of vocabulary as keep the ratio of `lm_head` to the layers. Pictures are 336 pixels and 576 tokens, as in truth.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from benchmarks.corpus import CC3M, PROSE, WORDS, make_corpus
from vlm.config import DataConfig, Dtype, Form, ModelConfig, ShardRuntime, SourceConfig, SplitConfig
from vlm.data.chat import Chat
from vlm.data.shards import build as shard
from vlm.demo.tokenizer import train_tokenizer
from vlm.model.assemble import assemble
from vlm.model.tokenizer import patch

PICTURES = 16  # different ones of a corpus


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model and a tower: width, layers, width inside, attention heads."""

    language: tuple[int, int, int, int]
    vocabulary: int
    tower: tuple[int, int, int, int]
    dtype: Dtype = Dtype.float32
    picture: tuple[int, int] = (336, 14)  # pixels of an edge, and of a patch's
    siglip: bool = False  # the tower's kind


SCALED = Shape((256, 10, 691, 4), 3840, (96, 6, 384, 6))
DEEP = replace(SCALED, language=(256, 40, 691, 4), vocabulary=15_184, tower=(96, 24, 384, 6))  # true layers
CLIP_QWEN_4B = Shape((2560, 40, 6912, 20), 151_936, (1024, 24, 4096, 16), Dtype.bfloat16)
CLIP_QWEN_HALF = replace(CLIP_QWEN_4B, language=(1024, 24, 2816, 16))
SIGLIP_QWEN_7B = Shape(
    (4096, 32, 11_008, 32), 151_936, (1152, 27, 4304, 16), Dtype.bfloat16, picture=(384, 14), siglip=True
)
TINY = Shape((64, 2, 172, 2), 512, (48, 2, 96, 2))  # to try the benchmarks themselves
SHAPES = {"tiny": TINY, "scaled": SCALED, "deep": DEEP, "clip_l_336_qwen1_5_4b": CLIP_QWEN_4B}
SHAPES |= {"clip_l_336_qwen1_5_0_5b": CLIP_QWEN_HALF, "siglip_384_qwen1_5_7b": SIGLIP_QWEN_7B}
SHAPES |= {"tiny_siglip": replace(TINY, picture=(112, 14), siglip=True)}


def make_model(folder: Path, shape: Shape) -> Path:
    """Write the parts with random weights and assemble them; return the model folder."""
    torch.manual_seed(0)
    width, layers, inside, heads = shape.language
    dtype = torch.bfloat16 if shape.dtype is Dtype.bfloat16 else torch.float32
    language = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=width,
        intermediate_size=inside,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
        max_position_embeddings=32_768,
    )
    with torch.device(
        "cuda" if torch.cuda.is_available() else "cpu"
    ):  # billions of weights are drawn there in a second
        drawn = Qwen2ForCausalLM(language)
    drawn.to(dtype).save_pretrained(folder / "language")
    train_tokenizer([PROSE, "Describe it. system user assistant"], 400).save_pretrained(folder / "language")
    width, layers, inside, heads = shape.tower
    tower = (SiglipVisionConfig if shape.siglip else CLIPVisionConfig)(
        hidden_size=width,
        intermediate_size=inside,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=shape.picture[0],
        patch_size=shape.picture[1],
    )
    (SiglipVisionModel if shape.siglip else CLIPVisionModel)(tower).to(dtype).save_pretrained(folder / "tower")
    edge = dict.fromkeys(("height", "width"), shape.picture[0])
    if shape.siglip:
        SiglipImageProcessor(size=edge).save_pretrained(folder / "tower")
    else:
        CLIPImageProcessor(size={"shortest_edge": shape.picture[0]}, crop_size=edge).save_pretrained(folder / "tower")
    model = ModelConfig(language_model=str(folder / "language"), vision_tower=str(folder / "tower"), dtype=shape.dtype)
    patch(model.language_model, "<image>", folder / "tokenizer")
    assemble(model, folder / "tokenizer", 0, folder / "model")  # without the gates of stage 01: nothing here is real
    return folder / "model"


def captions(samples: int, rng: np.random.Generator) -> list[tuple[bool, int, int]]:
    """Return (has a picture, words asked, words answered) of captions: 600 tokens with 20 to learn."""
    return [(True, 4, int(rng.integers(14, 26))) for _ in range(samples)]


def equal(samples: int, _: np.random.Generator) -> list[tuple[bool, int, int]]:
    """Return the same of conversations of one length: 900 tokens with 130 to learn."""
    return [(True, 170, 130)] * samples


def mixed(samples: int, rng: np.random.Generator) -> list[tuple[bool, int, int]]:
    """Return the same of a mixture modelled on LLaVA's 665k: median 780 tokens, mean 830, 95 % under 1,100.

    Six in a hundred are text alone, at most 2,048 tokens; every batch of 16 has one.
    """
    found = []
    for number in range(samples):
        pictured = number % 16 != 7
        text = rng.lognormal(np.log(180), 0.55) if pictured else rng.lognormal(np.log(900), 0.8)
        text = int(min(text, 1300 if pictured else 1850))  # of a little over a token each: under 2,048 in all
        found.append((pictured, max(4, int(text * 0.4)), max(4, int(text * 0.6))))
    return found


def pictured(samples: int, rng: np.random.Generator) -> list[tuple[bool, int, int]]:
    """Return `mixed` without text alone: LLaMA-Factory's `neat_packing` fails on a pack without a picture."""
    texts = np.minimum(rng.lognormal(np.log(180), 0.55, samples), 1300)
    return [(True, max(4, int(text * 0.4)), max(4, int(text * 0.6))) for text in texts.astype(int)]


def make_shards(folder: Path, model: Path, samples: list[tuple[bool, int, int]], form: Form) -> Path:
    """Write a corpus of these samples and shard it for a model; return the split."""
    rng = np.random.default_rng(1)
    make_corpus(folder, CC3M, PICTURES, seed=0)
    records = []
    for number, (pictured, asked, answered) in enumerate(samples):
        question = " ".join(rng.choice(WORDS, asked))
        turns = [
            {"from": "human", "value": f"<image>\n{question}" if pictured else question},
            {"from": "gpt", "value": " ".join(rng.choice(WORDS, answered))},
        ]
        picture = {"image": f"{number % PICTURES:06d}.jpg"} if pictured else {}
        records.append({"id": str(number), "conversations": turns} | picture)
    listed = folder / "chat.json"
    listed.write_text(json.dumps(records))
    source = SourceConfig(path=str(listed), images=str(folder / "images"))
    data = DataConfig(
        finetune=SplitConfig(sources=[source], form=form), runtime=ShardRuntime(workers=1), max_tokens=2048
    )
    shard(data, Chat.of_model(model), 0, folder / "shards")
    return folder / "shards/finetune"
