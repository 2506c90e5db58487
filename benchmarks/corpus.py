"""Corpora for the benchmarks: seeded noise with the spectrum of photographs, as JPEGs of a stated size."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlm.data.chat import Chat
from vlm.demo.tokenizer import train_tokenizer

PROSE = "a photograph of the small red boat beside an old stone bridge where two people wait for rain to end"
WORDS = PROSE.split()
IMAGE_TOKENS = 576


@dataclass(frozen=True)
class Kind:
    """What one kind of picture looks like."""

    name: str
    width: int  # pixels
    height: int
    bytes: int  # of a file, about


COCO = Kind("COCO-like", 640, 480, 150_000)
CC3M = Kind("CC3M-like", 336, 252, 11_000)


def make_corpus(folder: Path, kind: Kind, count: int, seed: int) -> Path:
    """Write `count` JPEGs and a LLaVA JSON list of them; return the list. Pictures lie in folder/images."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    fields = [_noise(rng, kind) for _ in range(8)]
    quality = _quality(fields[0], kind)
    records = []
    for number in range(count):
        shift = rng.integers(0, (kind.height, kind.width))
        colours = np.roll(fields[number % len(fields)], shift, (0, 1))
        Image.fromarray(colours).save(images / f"{number:06d}.jpg", "JPEG", quality=quality)
        records.append(record(number, rng))
    (folder / "chat.json").write_text(json.dumps(records))
    return folder / "chat.json"


def record(number: int, rng: np.random.Generator) -> dict:
    """Return a record of one picture in LLaVA's layout."""
    answer = f"{' '.join(rng.choice(WORDS, 12))} {number}"
    turns = [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": answer}]
    return {"id": f"{number:06d}", "image": f"{number:06d}.jpg", "conversations": turns}


def small_chat() -> Chat:
    """Return a chat with a byte-level tokenizer of its own and 576 tokens a picture."""
    tokenizer = train_tokenizer([PROSE, "Describe it. system user assistant"], 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    return Chat(tokenizer, "<image>", IMAGE_TOKENS)


def _noise(rng: np.random.Generator, kind: Kind) -> np.ndarray:
    """Return colours whose amplitude falls with 1/f, uint8 (H, W, 3)."""
    rows = np.fft.fftfreq(kind.height)[:, None]
    columns = np.fft.fftfreq(kind.width)[None]
    frequency = np.maximum(np.hypot(rows, columns), 1 / max(kind.width, kind.height))
    spectrum = np.fft.fft2(rng.normal(size=(3, kind.height, kind.width))) / frequency
    field = np.fft.ifft2(spectrum).real
    field = (field - field.mean()) / field.std() * 48 + 128
    return field.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def _quality(colours: np.ndarray, kind: Kind) -> int:
    """Return the JPEG quality whose file is nearest to the stated size."""

    def size(quality: int) -> int:
        out = io.BytesIO()
        Image.fromarray(colours).save(out, "JPEG", quality=quality)
        return len(out.getvalue())

    return min(range(5, 99), key=lambda quality: abs(size(quality) - kind.bytes))
