"""Corpora become shards: every sample checked, the good ones written, the others counted with their reason.

What a shard holds is fixed by the order of the corpora (rows k·S to (k+1)·S go to shard k), so neither the number
of workers nor an interruption changes a byte. A shard is committed by its sidecar, NAME.json, which holds its rows
of the index and a hash of the corpora's rows; the sidecars become index.npy, rejects.jsonl, left_out.jsonl and
shards.json, and shards.json commits the split.
"""

import gc
import io
import itertools
import json
import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm.config import DataConfig
from vlm.data.chat import Chat
from vlm.data.checks import Checks
from vlm.data.contamination import Excluded
from vlm.data.duplicates import is_repeated
from vlm.data.index import INDEX, MANIFEST, shard_name
from vlm.data.lengths import write_lengths
from vlm.data.mixture import Part, parts
from vlm.data.progress import progress
from vlm.data.samples import Reject, Row
from vlm.data.shard import begin_worker, digests, write, write_shard
from vlm.data.summary import COUNTS, Sidecar, compact, entries_of, manifest_of, rejects_of, table
from vlm.errors import Hindered, Unusable

REJECTS = "rejects.jsonl"
LEFT_OUT_ROWS = "left_out.jsonl"  # good samples that are not wanted: on both sides, duplicate, excluded


@dataclass(frozen=True)
class Share:
    """The shards that one of several tasks writes: those whose number leaves `task` when divided by `tasks`."""

    task: int = 0
    tasks: int = 1


@dataclass(frozen=True)
class SplitJob:
    """One split before it is written."""

    name: str
    rows: Part
    sources: list[str]  # labels, as the index numbers them
    checks: Checks


def build(data: DataConfig, chat: Chat, seed: int, out: Path) -> dict[str, Any]:
    """Write the splits that the settings name into `out`; return the headline figures.

    Shards that are there already, from an interrupted run or from tasks that each wrote a share, are kept.
    Raises Unusable if too many samples of a split are rejected, or a corpus is missing or broken.
    """
    figures: dict[str, Any] = {}
    for job in jobs_of(data, chat, seed):
        figures[job.name] = write_split(out / job.name, job.rows, job.sources, job.checks, data)
    print(table(figures))
    kept = (*COUNTS, "reasons", "reasons_left_out")
    return {part: {key: found[key] for key in kept} for part, found in figures.items()}


def write_share(data: DataConfig, chat: Chat, seed: int, out: Path, share: Share) -> None:
    """Write a task's share of the shards of every split into `out`, which the tasks have in common.

    Tasks may run at the same time or one after another, and any may be run again. When all have ended, `build`
    finds their shards and only writes the index and the manifest; a shard that is missing it writes itself.
    Raises Unusable if a corpus is missing or broken.
    """
    for job in jobs_of(data, chat, seed):
        folder = out / job.name
        if not (folder / MANIFEST).is_file():
            for _ in _sidecars(folder, job.rows, job.sources, job.checks, data, share):
                pass


def jobs_of(data: DataConfig, chat: Chat, seed: int) -> list[SplitJob]:
    """Return the splits that the settings name; the pictures of data.exclude are read here.

    Raises Unusable if there is none, or two of its sources share a name.
    """
    excluded = Excluded.of(data.exclude, data.exclude_distance, data.max_pixels, data.runtime.processes)
    jobs = []
    for name, split in (("pretrain", data.pretrain), ("finetune", data.finetune)):
        sources = [source.label for source in (*split.sources, *split.held_out)]
        if len({*sources}) < len(sources):
            raise Unusable(f"data.{name}: two sources are called {max(sources, key=sources.count)}: give them a name=")
        for part, rows in parts(name, split, seed).items():
            unwanted = None if rows.is_held_out else excluded
            limits = (data.max_tokens, data.max_pixels, data.max_image_bytes)
            checks = Checks(chat, split.form, *limits, unwanted, data.others_stored_as)
            jobs.append(SplitJob(part, rows, sources, checks))
    if not jobs:
        raise Unusable("no corpus is given: set data.pretrain.sources and data.finetune.sources, or choose data=")
    return jobs


def write_split(
    folder: Path, rows: Iterable[Row], sources: list[str], checks: Checks, data: DataConfig
) -> dict[str, Any]:
    """Write one split, going on after the last whole shard of an interrupted run; return its manifest.

    Raises Unusable if more than data.max_reject_fraction of the rows are rejected, or the disk is full.
    """
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text())
        _remove_sidecars(folder, range(len(manifest["shards"])))
        return manifest
    sidecars = list(_sidecars(folder, rows, sources, checks, data, Share()))
    return _commit(folder, sidecars, sources, checks, data.max_reject_fraction)


def _sidecars(
    folder: Path, rows: Iterable[Row], sources: list[str], checks: Checks, data: DataConfig, share: Share
) -> Iterator[Sidecar]:
    """Yield the sidecars of a share's shards in order, writing those that are not there.

    The rows are gone through twice where duplicates are dropped: what is one is known before a shard is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers, size = data.runtime.processes, data.samples_per_shard
    ahead = 2 * workers
    with (
        _workers(folder, workers, (folder, checks, sources)) as pool,
        progress(f"02_shard {folder.name}", lambda: _count(rows, size, share)) as tell,
    ):
        if data.drop_duplicates:
            chunks = _chunks(rows, size, Share())
            rows = _without(rows, is_repeated(b"".join(_in_order(pool, digests, chunks, ahead))))
        for sidecar in _in_order(pool, write_shard, _chunks(rows, size, share), ahead):
            tell(sum(sidecar["read"].values()), len(sidecar["rejects"]))
            yield compact(sidecar)


@contextmanager
def _workers(folder: Path, count: int, assignment: tuple) -> Iterator[Executor]:
    forked = multiprocessing.get_context("fork")  # the tokenizer is inherited, not copied
    gc.freeze()  # what was imported stays: no process need look through it again, or copy it for that
    with ProcessPoolExecutor(count, forked, initializer=begin_worker, initargs=(os.getpid(), *assignment)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise Hindered(f"{folder.name}: a worker process was killed, perhaps for its memory: run again") from None
        finally:
            gc.unfreeze()
            pool.shutdown(cancel_futures=True)  # only what is begun is waited for


def _without(rows: Iterable[Row], is_duplicate: np.ndarray) -> Iterator[Row]:
    detail = "the same pictures and the same text as an earlier sample"
    for row, is_second in zip(rows, is_duplicate, strict=True):
        yield replace(row, sample=Reject("duplicate", detail)) if is_second else row


def _in_order(pool: Executor, work: Callable, jobs: Iterable[tuple], ahead: int) -> Iterator[Any]:
    """Yield the results in order while at most `ahead` jobs are begun ahead of them."""
    waiting: deque[Future] = deque()
    for job in jobs:
        waiting.append(pool.submit(work, *job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _chunks(rows: Iterable[Row], size: int, share: Share) -> Iterator[tuple[int, bytes]]:
    """Yield the shards of a share, each with its number and its rows, pickled: to be sent, and to know them again."""
    rows = iter(rows)
    for number in itertools.count():
        chunk = list(itertools.islice(rows, size))
        if not chunk:
            return
        if number % share.tasks == share.task:
            yield number, pickle.dumps(chunk)


def _count(rows: Iterable[Row], size: int, share: Share) -> int:
    """Return how many rows a share has."""
    return sum(number // size % share.tasks == share.task for number, _ in enumerate(rows))


def _commit(
    folder: Path, sidecars: list[Sidecar], sources: list[str], checks: Checks, max_reject_fraction: float
) -> dict[str, Any]:
    manifest = manifest_of(sidecars, sources, checks)
    rejects, left_out = (rejects_of(sidecars, left_out=value) for value in (False, True))
    for name, those in ((REJECTS, rejects), (LEFT_OUT_ROWS, left_out)):
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in those)
        write(folder / name, lines.encode(errors="backslashreplace"))
    if not manifest["read"]:
        raise Unusable(f"{folder.name}: the corpus has no rows")
    offered = manifest["read"] - len(left_out)
    if len(rejects) > max_reject_fraction * offered or not manifest["samples"]:
        counted = ", ".join(f"{k} {v}" for k, v in (manifest["reasons"] | manifest["reasons_left_out"]).items())
        first = (rejects or left_out)[0]
        _remove_sidecars(folder, [i for i, one in enumerate(sidecars) if one["rejects"]])  # to be checked again
        raise Unusable(
            f"{folder.name}: {len(rejects)} of {offered} samples rejected ({counted}), more than "
            f"data.max_reject_fraction={max_reject_fraction}; first: {first['id']}: {first['detail']}; "
            f"all are in {folder / REJECTS}"
        )
    for left in folder.glob("*.tar"):  # of a corpus that was longer when the work began
        if int(left.stem) >= len(sidecars):
            left.unlink()
            left.with_suffix(".json").unlink(missing_ok=True)
    index, entries = io.BytesIO(), entries_of(sidecars)
    np.save(index, entries)
    write_lengths(folder, entries, checks.max_tokens)
    write(folder / INDEX, index.getvalue())
    write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    _remove_sidecars(folder, range(len(sidecars)))
    return manifest


def _remove_sidecars(folder: Path, shards: Iterable[int]) -> None:
    for number in shards:
        (folder / shard_name(number)).with_suffix(".json").unlink(missing_ok=True)
