"""Steps of a plan become batches. Reading is by sample number, so a run begins at any step at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.data.pixels import Preprocessing, decode, prepare
from vlm.data.plan import Plan
from vlm.errors import Hindered, Unusable

IGNORED = -100  # the label of a token that the loss does not count
KILLED = "a process that reads samples was killed, perhaps for its memory; run it again to go on"


@dataclass(frozen=True)
class Batch:
    """What one rank computes at once: B rows of L tokens with N pictures of S pixels.

    A row is a pack: samples one after the other, positions beginning at 0 in each, then padding.
    """

    input_ids: Tensor  # (B, L) int64; a picture is P times the picture token
    labels: Tensor  # (B, L) int64; the token itself where it is a target, else IGNORED
    position_ids: Tensor  # (B, L) int64
    pixel_values: Tensor  # (N, 3, S, S) uint8, in reading order
    sources: Tensor  # (T,) int64; the source of each of the T targets, in reading order
    source_count: int  # of the split
    samples: tuple[int, ...]  # sample numbers
    tokens: int  # without padding

    def pin_memory(self) -> "Batch":
        """Return the batch with its pictures where a GPU can fetch them by itself; torch's DataLoader asks for it."""
        return replace(self, pixel_values=self.pixel_values.pin_memory())


class Steps(Dataset):
    """Item t holds the micro-batches of one rank in step t."""

    def __init__(
        self, split: Split, plan: Plan, chat: Chat, how: Preprocessing, *, rank: int, ranks: int, rows_at_once: int
    ) -> None:
        """Serve the share of one rank of `ranks`."""
        self.split = split
        self.plan = plan
        self.chat = chat
        self.how = how
        self.rank = rank
        self.ranks = ranks
        self.rows_at_once = rows_at_once

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> list[Batch] | Unusable:
        try:
            return [self.batch(packs) for packs in self.plan.share(step, self.rank, self.ranks, self.rows_at_once)]
        except Unusable as problem:
            return problem  # raised in a worker process it would lose its one line

    def check(self, numbers: list[int]) -> None:
        """Read some samples as training will.

        Raises Unusable if they are damaged, or were sharded with another tokenizer.
        """
        for number in numbers:
            self._sample(number)

    def batch(self, packs: list[list[int]]) -> Batch:
        """Return the rows of these packs, each a list of sample numbers.

        Raises Unusable if a sample is not what was sharded.
        """
        rows = [[self._sample(number) for number in pack] for pack in packs]
        length = max(1, *(sum(len(ids) for ids, _, _ in row) for row in rows))
        pad = self.chat.tokenizer.pad_token_id
        input_ids = torch.full((len(rows), length), pad, dtype=torch.int64)
        labels = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
        position_ids = torch.zeros((len(rows), length), dtype=torch.int64)
        tokens = 0
        for i, row in enumerate(rows):
            at = 0
            for ids, is_target, _ in row:
                end = at + len(ids)
                input_ids[i, at:end] = torch.from_numpy(ids)
                labels[i, at:end] = torch.from_numpy(np.where(is_target, ids, IGNORED))
                position_ids[i, at:end] = torch.arange(len(ids))
                at = end
            position_ids[i, at:] = torch.arange(length - at)  # padding is a sample of its own
            tokens += at
        pictures = [picture for row in rows for _, _, pictures in row for picture in pictures]
        none = torch.zeros(0, 3, self.how.size, self.how.size).byte()
        pixels = default_collate(pictures) if pictures else none  # stacked in shared memory, to be handed over as it is
        samples = tuple(number for pack in packs for number in pack)
        sources = np.repeat(self.plan.sources[list(samples)], self.plan.targets[list(samples)])
        count = len(self.split.manifest["sources"])
        return Batch(input_ids, labels, position_ids, pixels, torch.from_numpy(sources), count, samples, tokens)

    def _sample(self, number: int) -> tuple[np.ndarray, np.ndarray, list[Tensor]]:
        stored = self.split.read(number)
        manifest = self.split.manifest
        encoded = self.chat.encode(stored.sample.turns, len(stored.pictures), self.split.form, manifest["max_tokens"])
        row, targets = self.split.rows[number], int(encoded.is_target.sum())
        if (len(encoded.ids), targets) != (row["tokens"], row["targets"]):
            raise Unusable(
                f"sample {stored.sample.id} is {len(encoded.ids)} tokens with {targets} to learn, {row['tokens']} with "
                f"{row['targets']} when it was sharded: the shards belong to another tokenizer or version, shard again"
            )
        return encoded.ids, encoded.is_target, [prepare(decode(data), self.how) for data in stored.pictures]


def load_steps(steps: Steps, first_step: int, workers: int) -> Iterator[list[Batch]]:
    """Yield the micro-batches of step `first_step` and of every later one, read ahead by worker processes.

    Raises Unusable if a sample is damaged or is not what was sharded, Hindered if a worker ends while it hands over.
    """
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first_step, len(steps)),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_begin_worker,
    )
    ready = iter(loader)
    try:
        while True:
            try:
                micro_batches = next(ready, None)
            except (EOFError, ConnectionError):  # the socket through which tensors come
                raise Hindered(KILLED) from None
            if micro_batches is None:
                return
            if isinstance(micro_batches, Unusable):
                raise micro_batches
            yield micro_batches
    finally:
        del ready  # which ends the workers, also while a traceback holds this frame: they ignore SIGTERM


@contextmanager
def whole_workers() -> Iterator[None]:
    """Say in one line that a process which reads ahead was killed, wherever in the block torch comes to tell it.

    Raises Hindered then.
    """
    try:
        yield
    except RuntimeError as problem:
        if not str(problem).startswith("DataLoader worker"):
            raise
        raise Hindered(KILLED) from None


def _as_it_is(item: list[Batch] | Unusable) -> list[Batch] | Unusable:
    return item


def _begin_worker(number: int) -> None:
    """Leave stop signals, which a terminal or a scheduler sends to the whole group, to the training process."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(stop, signal.SIG_IGN)


def check_split(folder: Path, image_tokens: int) -> Split:
    """Open a split that is to be trained on.

    Raises Unusable if a shard is missing, the index is another split's, or it was sharded for a tower with another number of tokens for a picture.
    """
    split = Split(folder)
    missing = [shard["name"] for shard in split.manifest["shards"] if not (folder / shard["name"]).is_file()]
    if missing:
        raise Unusable(f"{folder} lacks {missing[0]} ({len(missing)} missing): copy it there, or shard again")
    if len(split) != split.manifest["samples"]:
        raise Unusable(f"{folder} has an index of {len(split)} samples, not {split.manifest['samples']}: shard again")
    if split.manifest["image_tokens"] != image_tokens:
        raise Unusable(
            f"{folder} was sharded for {split.manifest['image_tokens']} tokens a picture, the model has {image_tokens}"
        )
    return split
