"""Tokenizers of the three kinds that chat models have, and a corpus that a test writes itself."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vlm.config import DataConfig, Form, ShardRuntime, SourceConfig, SplitConfig
from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.model.tokenizer import patch

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

VICUNA = (
    "{{ bos_token + 'A chat.' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
    "{% else %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
LLAMA_2 = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rejects_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def samples_of(split: Split) -> list:
    return [split.read(number) for number in range(len(split))]


@pytest.fixture(scope="session")
def chats(tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    """Qwen's template on byte-level BPE; Vicuna's and Llama 2's on BPE with Metaspace, as sentencepiece splits."""
    known = {"qwen": tiny_chat}
    for name, template in (("vicuna", VICUNA), ("llama_2", LLAMA_2)):
        folder = tmp_path_factory.mktemp(name)
        (folder / "source").mkdir()
        sentencepiece_like(template).save_pretrained(folder / "source")
        (folder / "source/config.json").write_text('{"model_type": "llama"}')
        patch(str(folder / "source"), "<image>", folder / "patched")
        known[name] = Chat.load(str(folder / "patched"), "<image>", 4)
    return known


def sentencepiece_like(template: str) -> PreTrainedTokenizerFast:
    """A Llama tokenizer in small: a word carries the space before it, unknown letters become bytes, <s> comes first."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"])
    bpe.train_from_iterator([template, "A cat sits. What colour is the square? yes no red"], trainer)
    state = json.loads(bpe.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    bpe = Tokenizer.from_str(json.dumps(state))
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


@pytest.fixture
def corpus(tmp_path: Path):
    """Return a function that writes records as a JSON list beside a folder of pictures, and its source settings."""

    def make(records: list, name: str = "corpus", pictures: dict[str, bytes] | None = None) -> SourceConfig:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        for file, data in (pictures or {}).items():
            (folder / "images" / file).write_bytes(data)
        (folder / "all.json").write_text(json.dumps(records))
        return SourceConfig(path=str(folder / "all.json"), images=str(folder / "images"))

    return make


@pytest.fixture
def data_of():
    """Return a function that makes the settings of stage 02 from finetune sources; keyword arguments change them."""

    def make(workers: int = 1, held_out_fraction: float = 0.0, **sources_and_changes) -> DataConfig:
        sources = [replace(v, name=k) for k, v in sources_and_changes.items() if isinstance(v, SourceConfig)]
        changes = {k: v for k, v in sources_and_changes.items() if not isinstance(v, SourceConfig)}
        split = SplitConfig(sources=sources, held_out_fraction=held_out_fraction, form=Form.chat)
        return DataConfig(
            finetune=split,
            runtime=ShardRuntime(workers=workers),
            **{"samples_per_shard": 4, "max_tokens": 256} | changes,
        )

    return make


@pytest.fixture
def record():
    """Return a function that makes a LLaVA record of one question with these pictures."""

    def make(identity: object, *names: str, answer: str = "red") -> dict:
        question = "<image>\n" * len(names) + f"What colour is {identity}?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"id": identity, "image": list(names), "conversations": turns}

    return make


@pytest.fixture
def encoded():
    """Return a function that makes a picture of a seeded noise and encodes it."""

    def make(seed: int = 0, size: tuple[int, int] = (20, 14), form: str = "PNG", **settings) -> bytes:
        colours = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(colours).save(out, form, **settings)
        return out.getvalue()

    return make


@pytest.fixture
def many(corpus, record, encoded):
    """A corpus of 30 samples with one picture each, three of them bad."""
    pictures = {f"{number}.png": encoded(number) for number in range(30)}
    pictures |= {"7.png": b"", "19.png": pictures["19.png"][:400]}
    del pictures["23.png"]
    return corpus([record(number, f"{number}.png") for number in range(30)], "many", pictures)


@pytest.fixture(scope="session")
def smooth():
    def picture(width: int, height: int) -> Image.Image:
        """A picture without hard edges but for one, so that a shift by a pixel is seen."""
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        colours = np.stack(
            [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), 127 + 100 * np.sin(x / 3 + y / 5)]
        )
        colours[:, height // 3 : height // 3 * 2, width // 4 : width // 2] = 250
        return Image.fromarray(colours.transpose(1, 2, 0).astype(np.uint8))

    return picture
