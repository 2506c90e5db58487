"""Tiny parts, made here and never downloaded: language model, tower, corpus, and what the stages make of them."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other on a busy machine cost ten times more

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vlm.config import DataConfig, Dtype, Form, ModelConfig, SourceConfig, SplitConfig
from vlm.data.chat import Chat
from vlm.data.shards import build
from vlm.model.assemble import assemble
from vlm.model.tokenizer import patch

from .forked import Forked
from .scheduling import (  # noqa: F401  what pytest looks for here
    pytest_collection_modifyitems,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)
from .scripted import Scripted

IMAGE_TOKENS = 4  # 2 x 2 patches of the tiny tower
COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 210), "yellow": (230, 200, 40)}
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of width 32 with two layers, random weights, its byte-level tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("language_model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(
        [TEMPLATE, " ".join(COLOURS), "What colour is the square? Is there a circle? yes no"], trainer
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # large, so that different inputs get different answers
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(1)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP tower of width 16 with two layers, random weights; a picture of 16 x 16 pixels becomes 4 tokens."""
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
        initializer_factor=8.0,  # large, so that different pictures get different features
    )
    CLIPVisionModel(config).save_pretrained(folder)
    size = {"height": config.image_size, "width": config.image_size}
    CLIPImageProcessor(size={"shortest_edge": config.image_size}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 00 makes of the tiny language model's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    patch(str(tiny_language_model), "<image>", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_config(tiny_language_model: Path, tiny_tower: Path) -> ModelConfig:
    return ModelConfig(language_model=str(tiny_language_model), vision_tower=str(tiny_tower), dtype=Dtype.float32)


@pytest.fixture(scope="session")
def tiny_model(tiny_model_config: ModelConfig, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 01 makes of the tiny parts: a LlavaForConditionalGeneration folder, float32."""
    folder = tmp_path_factory.mktemp("assemble") / "model"
    assemble(tiny_model_config, tiny_tokenizer, 0, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_chat(tiny_tokenizer: Path) -> Chat:
    return Chat.load(str(tiny_tokenizer), "<image>", IMAGE_TOKENS)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, train.json (24 records) and held_out.json (40 questions with id and category).

    Single-turn, multi-turn, text-only and two-picture records take turns; neighbours share pictures.
    """
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        _draw(folder / "images" / _name(number), random)
    for name, records in (("train", 24), ("held_out", 40)):
        (folder / f"{name}.json").write_text(json.dumps([_record(name, number) for number in range(records)]))
    return folder


@pytest.fixture(scope="session")
def tiny_shards(tiny_corpus: Path, tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 02 makes of the tiny corpus: pretrain (plain), finetune and finetune_held_out (chat)."""
    folder = tmp_path_factory.mktemp("shards")
    images = str(tiny_corpus / "images")
    train = SourceConfig(path=str(tiny_corpus / "train.json"), images=images)
    held_out = SourceConfig(path=str(tiny_corpus / "held_out.json"), images=images)
    data = DataConfig(
        pretrain=SplitConfig(sources=[train], form=Form.plain),
        finetune=SplitConfig(sources=[train], held_out=[held_out]),
        max_tokens=256,
        samples_per_shard=10,
    )
    build(data, tiny_chat, 0, folder)
    return folder


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """Starts scripts that need not import torch and all the rest anew."""
    forked = Forked()
    yield forked
    forked.close()


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    """A scripted endpoint of the OpenAI protocol."""
    scripted = Scripted()
    yield scripted
    scripted.close()


BROWSER_FLAGS = """headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
    disable-component-update disable-sync disable-dev-shm-usage window-size=1200,1000"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator:
    """A headless Chromium, driven by selenium; it keeps what a page writes to its console."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: Debian's packages chromium and chromium-driver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in BROWSER_FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'browser'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


@pytest.fixture(scope="session")
def tiny_settings(tiny_language_model: Path, tiny_tower: Path, tiny_corpus: Path) -> list[str]:
    """What a stage script is given to run on the tiny parts: six steps in 03 and in 04."""
    images = f"images: {tiny_corpus}/images"
    train, test = (f"{{path: {tiny_corpus}/{name}.json, {images}}}" for name in ("train", "held_out"))
    return [
        f"model.language_model={tiny_language_model}",
        f"model.vision_tower={tiny_tower}",
        f"data.pretrain.sources=[{train}]",
        f"data.finetune.sources=[{train}]",
        f"data.finetune.held_out=[{test}]",
        "data.samples_per_shard=5",
        "pretrain.steps=6",
        "pretrain.samples_per_step=4",
        "pretrain.runtime.save_every=2",
        "finetune.steps=6",
        "finetune.samples_per_step=4",
        "finetune.runtime.save_every=2",
        "eval.tasks.questions.max_new_tokens=4",
        "eval.runtime.batch_size=8",
    ]


def _name(number: int) -> str:
    return f"{number:02d}.{'png' if number % 3 else 'jpg'}"


def _draw(path: Path, random: np.random.Generator) -> None:
    """Save a picture of random size with a few rectangles."""
    width, height = random.integers(12, 48, 2)
    canvas = np.full((height, width, 3), random.integers(0, 255, 3), np.uint8)
    for colour in COLOURS.values():
        left, top = random.integers(0, width - 6), random.integers(0, height - 6)
        canvas[top : top + random.integers(4, 20), left : left + random.integers(4, 20)] = colour
    Image.fromarray(canvas).save(path)


def _record(split: str, number: int) -> dict[str, object]:
    """Return a record whose kind goes by number % 5: 0, 1 one question; 2 two questions; 3 no picture; 4 two pictures."""
    kind = number % 5
    first = number // 2 % 12
    colour = list(COLOURS)[number % len(COLOURS)]
    turns = [("human", f"What colour is square {number}?"), ("gpt", colour)]
    if kind == 2:
        turns += [("human", "Is there a circle?"), ("gpt", "yes" if number % 2 else "no")]
    names = {3: [], 4: [_name(first), _name((first + 5) % 12)]}.get(kind, [_name(first)])
    turns[0] = ("human", "<image>\n" * len(names) + turns[0][1])
    record: dict[str, object] = {
        "id": f"{split}_{number}",
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "question_id": f"q{number}",
        "category": ["colour", "existence"][kind == 2],
    }
    return record | ({"image": names[0] if len(names) == 1 else names} if names else {})
