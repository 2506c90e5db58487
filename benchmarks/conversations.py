"""LLaVA's conversations as the contestants of a quality table are given them: every answer is learnt, not the first alone."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlavaProcessor, PreTrainedTokenizerBase

IGNORED = -100
ROLES = {"human": "user", "gpt": "assistant"}


def messages_of(record: dict[str, Any]) -> list[dict[str, str]]:
    """Return a record of LLaVA's as the messages that a chat template takes."""
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]


def written(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return messages whose contents are what the chat template writes of these, cut before and behind every answer.

    An answer ends with its end-of-turn token; what the template writes behind the last one is left out.
    """

    def text(count: int, *, asks: bool) -> str:
        return tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=asks)

    cuts = [0]
    for number in range(1, len(messages), 2):
        cuts += [len(text(number, asks=True)), len(text(number + 1, asks=False).rstrip())]
    whole = text(len(messages), asks=False)
    spans = zip(messages, pairwise(cuts), strict=True)
    return [{"role": message["role"], "content": whole[start:end]} for message, (start, end) in spans]


class Conversations(Dataset):
    """LLaVA JSON read over and over until there are `count` samples."""

    def __init__(self, listed: Path, images: Path, processor: LlavaProcessor, count: int) -> None:
        self.records = json.loads(listed.read_text())
        self.images = images
        self.processor = processor
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        record = self.records[at % len(self.records)]
        tokenizer, image = self.processor.tokenizer, self.processor.image_token
        said = written(tokenizer, messages_of(record))
        texts = [message["content"].replace(image, image * self.image_tokens) for message in said]
        ends = list(accumulate(map(len, texts)))
        coded = tokenizer("".join(texts), return_offsets_mapping=True, add_special_tokens=False)
        ids = torch.tensor(coded["input_ids"])
        is_target = [bisect_right(ends, first) % 2 == 1 for first, _ in coded["offset_mapping"]]
        pixels = self.processor.image_processor(Image.open(self.images / record["image"]), return_tensors="pt")
        labels = torch.where(torch.tensor(is_target), ids, IGNORED)
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels["pixel_values"]}

    @property
    def image_tokens(self) -> int:
        size, patch = self.processor.image_processor.crop_size["height"], self.processor.patch_size
        return (size // patch) ** 2


def pad(samples: list[dict[str, Tensor]], filler: int) -> dict[str, Tensor]:
    """Return a batch as long as its longest sample, padded on the right."""

    def stacked(name: str, value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([one[name] for one in samples], True, value)

    lengths = torch.tensor([len(one["input_ids"]) for one in samples])
    ids = stacked("input_ids", filler)
    return {
        "input_ids": ids,
        "labels": stacked("labels", IGNORED),
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "pixel_values": torch.cat([one["pixel_values"] for one in samples]),
    }
