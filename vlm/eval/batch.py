"""Questions side by side: which share a batch, and what of their prompts is computed once for many.

A benchmark asks much about each picture (POPE 18 questions, GQA 32, VQAv2 5), and a picture is most of a prompt. So a
prompt is computed in two parts. Its head goes up to its last picture token, and is computed once for all rows of the
batch that begin with the same ids and the same pictures. Its tail is the rest, and reads the head's keys and values;
the tails of several questions lie in one row after their head, and none sees another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm.data.pixels import Preprocessing, decode, prepare
from vlm.errors import Unusable
from vlm.eval.question import Place, Question
from vlm.eval.tasks import Pictures

NOBODY = -1  # the question that padding belongs to
# What is weighed against a token's way through all weights: 12 D² multiplications a layer, D being the width.
SEEN_OF_TOKEN = 6 * 1024  # tokens whose keys and values are read (2 D each), at a width in the middle
COPIED_OF_TOKEN = 16  # tokens whose keys and values are copied


@dataclass(frozen=True)
class Ask:
    """A question as it is asked: in the words, and with the pictures, of one condition."""

    question: Question
    prompt: NDArray[np.int32]  # (L,) ids, picture tokens included
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Batch:
    """B questions in R rows: a head, of which there are G different ones of up to H tokens, and then their tails."""

    asks: tuple[Ask, ...]
    head_ids: Tensor  # (G, H) int64, padded on the left
    head_is_token: Tensor  # (G, H) int64, 0 where padded
    head_of: tuple[int, ...]  # of each of the B questions
    rows: tuple[tuple[int, ...], ...]  # the questions of each of the R rows; those of a row have one head
    tail_ids: Tensor  # (R, T) int64, the tails of a row's questions one after the other, padded on the right
    tail_of: Tensor  # (R, T) int64, the question that a token belongs to; NOBODY where padded
    tail_positions: Tensor  # (R, T) int64, places in the question's own prompt
    pixels: Tensor | None  # (N, 3, S, S) uint8, those of the heads in reading order; None without pictures


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
    tails = [ask.prompt[length:] for ask, length in zip(asks, lengths, strict=True)]
    side_by_side = in_rows(head_of, [len(row) for row in rows], [len(tail) for tail in tails])
    ids = [np.concatenate([tails[number] for number in row]) for row in side_by_side]
    owners = [np.repeat(row, [len(tails[number]) for number in row]) for row in side_by_side]
    positions = [
        np.concatenate([np.arange(lengths[number], len(asks[number].prompt)) for number in row]) for row in side_by_side
    ]
    return Batch(
        asks=tuple(asks),
        head_ids=head_ids,
        head_is_token=head_is_token,
        head_of=tuple(head_of),
        rows=tuple(map(tuple, side_by_side)),
        tail_ids=_pad_right(ids, pad_id),
        tail_of=_pad_right(owners, NOBODY),
        tail_positions=_pad_right(positions, 0),
        pixels=torch.stack(pictures) if pictures else None,
    )


def in_rows(head_of: Sequence[int], heads: Sequence[int], tails: Sequence[int]) -> list[list[int]]:
    """Return the questions in rows, those of a row with one head; `heads` and `tails` are lengths.

    A row reads its head's keys and values once, however many questions it holds, but as every row is as long as the
    longest, and every question of a row is compared with the tails of the others, too many a row cost more than they
    save. The cheapest number is taken.
    """
    groups: dict[int, list[int]] = {}
    for number, head in enumerate(head_of):
        groups.setdefault(head, []).append(number)
    best: tuple[float, list[list[int]]] | None = None
    for size in range(1, max(map(len, groups.values())) + 1):
        rows = [part for group in groups.values() for part in _split(group, size)]
        longest = max(sum(tails[number] for number in row) for row in rows)
        seen = max(heads) + longest
        cost = len(rows) * (longest * (1 + seen / SEEN_OF_TOKEN) + max(heads) / COPIED_OF_TOKEN)
        if best is None or cost < best[0]:
            best = cost, rows
    assert best is not None
    return best[1]


def _split(group: Sequence[int], size: int) -> list[list[int]]:
    """Return a group in as few parts of up to `size` as there can be, about equally long."""
    parts = -(-len(group) // size)
    return [list(group[len(group) * i // parts : len(group) * (i + 1) // parts]) for i in range(parts)]


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


def _pad_right(rows: Sequence[NDArray[np.integer]], filler: int) -> Tensor:
    """Return rows (R, T) that begin together."""
    padded = torch.full((len(rows), max(map(len, rows))), filler)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return padded
