"""Questions side by side: which share a batch, and what of their prompts is computed once for many.

A benchmark asks much about each picture (POPE 18 questions, GQA 32, VQAv2 5), and a picture is most of a prompt. So a
prompt is computed in two parts. Its head goes up to its last picture token, and is computed once for all rows of the
batch that begin with the same ids and the same pictures. Its tail is the rest, and reads the head's keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm.data.pixels import Preprocessing, decode, prepare
from vlm.errors import Unusable
from vlm.eval.tasks import Pictures, Place, Question


@dataclass(frozen=True)
class Ask:
    """A question as it is asked: in the words, and with the pictures, of one condition."""

    question: Question
    prompt: NDArray[np.int32]  # (L,) ids, picture tokens included
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Batch:
    """B questions with G different heads of up to H tokens, and tails of up to T."""

    asks: tuple[Ask, ...]
    head_ids: Tensor  # (G, H) int64, padded on the left
    head_is_token: Tensor  # (G, H) int64, 0 where padded
    head_of: Tensor  # (B,) int64, the head that each question begins with
    tail_ids: Tensor  # (B, T) int64, padded on the left: between head and tail
    tail_is_token: Tensor  # (B, T) int64
    pixels: Tensor | None  # (N, 3, S, S) uint8, those of the heads in reading order; None without pictures

    @property
    def ids(self) -> Tensor:
        """The prompts, (B, H + T)."""
        return torch.cat([self.head_ids[self.head_of], self.tail_ids], dim=1)

    @property
    def is_token(self) -> Tensor:
        """1 where they are tokens, 0 where they are padding, (B, H + T)."""
        return torch.cat([self.head_is_token[self.head_of], self.tail_is_token], dim=1)


def in_batches(asks: Sequence[Ask], size: int) -> list[list[Ask]]:
    """Return the questions in batches of up to `size`; those about the same pictures share one where it holds them all.

    `asks` are all questions of a task. The batches follow from them alone; the longest prompts come first.
    """
    names = {place: name for ask in asks for place, name in zip(ask.question.own, ask.question.pictures, strict=True)}
    groups: dict[tuple[str, ...], list[Ask]] = {}
    for ask in sorted(asks, key=lambda ask: -len(ask.prompt)):
        groups.setdefault(tuple(names[place] for place in ask.places), []).append(ask)
    batches: list[list[Ask]] = []
    for group in groups.values():
        for at in range(0, len(group), size):
            part = group[at : at + size]
            if batches and len(batches[-1]) + len(part) <= size:
                batches[-1] += part
            else:
                batches.append(part)
    return batches


def collate(samples: Pictures, asks: Sequence[Ask], image_id: int, pad_id: int, how: Preprocessing) -> Batch:
    """Make a batch; the pictures are read and decoded here, each different one once for each head.

    Raises Unusable if a picture cannot be decoded.
    """
    read = {number: samples.read(number).pictures for number in {number for ask in asks for number, _ in ask.places}}
    lengths = _head_lengths(asks, image_id)
    heads: dict[tuple[bytes, ...], int] = {}
    rows, pictures, head_of = [], [], []
    for ask, length in zip(asks, lengths, strict=True):
        shown = [read[number][i] for number, i in ask.places]
        key = (ask.prompt[:length].tobytes(), *shown)
        if key not in heads:
            heads[key] = len(heads)
            rows.append(ask.prompt[:length])
            pictures += [_prepared(data, ask, how) for data in shown]
        head_of.append(heads[key])
    head_ids, head_is_token = pad_left(rows, pad_id)
    tail_ids, tail_is_token = pad_left([ask.prompt[length:] for ask, length in zip(asks, lengths, strict=True)], pad_id)
    pixels = torch.stack(pictures) if pictures else None
    return Batch(tuple(asks), head_ids, head_is_token, torch.tensor(head_of), tail_ids, tail_is_token, pixels)


def _head_lengths(asks: Sequence[Ask], image_id: int) -> list[int]:
    """Return how long each head is: up to the last picture token, or what all prompts without one begin with."""
    bare = [ask.prompt for ask in asks if not ask.places]
    common = 1
    while bare and all(len(one) > common + 1 and one[common] == bare[0][common] for one in bare):
        common += 1
    return [int(np.flatnonzero(ask.prompt == image_id)[-1]) + 1 if ask.places else common for ask in asks]


def _prepared(data: bytes, ask: Ask, how: Preprocessing) -> Tensor:
    try:
        return prepare(decode(data), how)
    except (OSError, ValueError, SyntaxError) as problem:  # Pillow's, on damaged bytes
        raise Unusable(f"the picture of question {ask.question.id} cannot be decoded: {problem}") from None


def pad_left(prompts: Sequence[NDArray[np.int32]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) that end together, and 1 where they are tokens, 0 where they are padding."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    is_token = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        is_token[row, longest - len(prompt) :] = 1
    return ids, is_token
