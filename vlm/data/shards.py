"""Corpora become shards: every sample checked, the good ones written, the others counted with their reason.

What a shard holds is fixed by the order of the corpora (rows k·S to (k+1)·S go to shard k), so neither the number
of workers nor an interruption changes a byte. A shard is committed by its sidecar, NAME.json, which holds its rows
of the index; the sidecars become index.npy, rejects.jsonl, left_out.jsonl and shards.json, and shards.json commits
the split.
"""

import ctypes
import gc
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from vlm.config import DataConfig
from vlm.data.chat import Chat
from vlm.data.checks import Checked, Checks
from vlm.data.contamination import Excluded
from vlm.data.duplicates import is_repeated
from vlm.data.index import INDEX, MANIFEST, record_of, shard_name
from vlm.data.lengths import write_lengths
from vlm.data.mixture import parts
from vlm.data.samples import Reject, Row
from vlm.data.summary import COUNTS, Sidecar, compact, entries_of, manifest_of, rejects_of, table
from vlm.data.ustar import closing, member
from vlm.errors import Unusable
from vlm.files import written_whole

REJECTS = "rejects.jsonl"
AS_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True)
LEFT_OUT_ROWS = "left_out.jsonl"  # good samples that are not wanted: on both sides, duplicate, excluded


def build(data: DataConfig, chat: Chat, seed: int, out: Path) -> dict[str, Any]:
    """Write the splits that the settings name into `out`; return the headline figures.

    Raises Unusable if too many samples of a split are rejected, or a corpus is missing or broken.
    """
    figures: dict[str, Any] = {}
    workers = data.runtime.workers
    excluded = Excluded.of(data.exclude, data.exclude_distance, data.max_pixels, workers)
    for name, split in (("pretrain", data.pretrain), ("finetune", data.finetune)):
        sources = [source.label for source in (*split.sources, *split.held_out)]
        if len({*sources}) < len(sources):
            raise Unusable(f"data.{name}: two sources are called {max(sources, key=sources.count)}: give them a name=")
        for part, rows in parts(name, split, seed).items():
            unwanted = None if rows.is_held_out else excluded
            limits = (data.max_tokens, data.max_pixels, data.max_image_bytes)
            checks = Checks(chat, split.form, *limits, unwanted, data.others_stored_as)
            figures[part] = write_split(out / part, rows, sources, checks, data)
    if not figures:
        raise Unusable("no corpus is given: set data.pretrain.sources and data.finetune.sources, or choose data=")
    print(table(figures))
    kept = (*COUNTS, "reasons", "reasons_left_out")
    return {part: {key: found[key] for key in kept} for part, found in figures.items()}


def write_split(
    folder: Path, rows: Iterable[Row], sources: list[str], checks: Checks, data: DataConfig
) -> dict[str, Any]:
    """Write one split, going on after the last whole shard of an interrupted run; return its manifest.

    The rows are gone through twice where duplicates are dropped: what is one is known before a shard is written.
    Raises Unusable if more than data.max_reject_fraction of the rows are rejected, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text())
        _remove_sidecars(folder, len(manifest["shards"]))
        return manifest
    assignment = (os.getpid(), folder, checks, sources)
    ahead = 2 * data.runtime.workers
    sidecars: list[Sidecar] = []
    with (
        tqdm(desc=f"02_shard {folder.name}", unit=" samples", unit_scale=True) as bar,
        ProcessPoolExecutor(
            data.runtime.workers,
            multiprocessing.get_context("fork"),  # the tokenizer is inherited, not copied
            initializer=_begin_worker,
            initargs=assignment,
        ) as pool,
    ):
        try:
            if data.drop_duplicates:
                chunks = _chunks(rows, data.samples_per_shard)
                rows = _without(rows, is_repeated(b"".join(_in_order(pool, _digests, chunks, ahead))))
            for sidecar in _in_order(pool, _write_shard, _chunks(rows, data.samples_per_shard), ahead):
                sidecars.append(compact(sidecar))
                bar.update(sum(sidecar["read"].values()))
                bar.set_postfix(rejected=sum(len(done["rejects"]) for done in sidecars))
        except BrokenProcessPool:
            raise Unusable(f"{folder.name}: a worker process was killed, perhaps for its memory: run again") from None
    return _commit(folder, sidecars, sources, checks, data.max_reject_fraction)


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


_assignment: tuple[Path, Checks, list[str]]  # of a worker process: where to write and what to check


def _begin_worker(parent: int, *assignment: object) -> None:
    global _assignment  # noqa: PLW0603 - set once in each worker process
    _assignment = assignment
    gc.freeze()  # what was imported stays: the collector need not look through it again
    if sys.platform == "linux":  # a worker must not outlive a killed run and write beside the next one
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it was killed before that
            os._exit(1)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[tuple[int, list[Row]]]:
    rows = iter(rows)
    return enumerate(iter(lambda: list(itertools.islice(rows, size)), []))


def _digests(_number: int, rows: list[Row]) -> bytes:
    _, checks, _ = _assignment
    return b"".join(map(checks.digest, rows))


def _write_shard(number: int, rows: list[Row]) -> Sidecar:
    """Write one shard and its sidecar, unless they are there; return the sidecar."""
    folder, checks, sources = _assignment
    path = folder / shard_name(number)
    sidecar_path = path.with_suffix(".json")
    if sidecar_path.is_file():
        return json.loads(sidecar_path.read_text())
    sidecar: Sidecar = {"read": Counter(row.source for row in rows), "entries": [], "digests": [], "rejects": []}
    sidecar["cut_turns"] = 0
    end, digest = 0, hashlib.sha256()
    with _written_whole(path) as shard:
        for at, row in enumerate(rows):
            try:
                good = checks.of(row)
            except Reject as reason:
                found = {"source": row.source, "id": row.id, "reason": reason.code, "detail": reason.detail}
                sidecar["rejects"].append(found)
                continue
            data = members(f"{number:06d}{at:06d}", good)
            shard.write(data)
            digest.update(data)
            start, end = end, end + len(data)
            place = [number, start, len(data), zlib.crc32(data), sources.index(row.source)]
            sidecar["entries"].append([*place, len(good.pictures), *good.size, good.tokens, good.targets])
            sidecar["digests"].append(good.digest.hex())
            sidecar["cut_turns"] += good.cut_turns
        shard.write(closing(end))
        digest.update(closing(end))
    sidecar["sha256"] = digest.hexdigest()
    _write(sidecar_path, json.dumps(sidecar).encode())
    return sidecar


def members(key: str, good: Checked) -> bytes:
    """Return a WebDataset sample as tar members, KEY.jpg, KEY.1.jpg, … and KEY.json, as webdataset's writer does."""
    named = {(f"{i}." if i else "") + picture.extension: picture.data for i, picture in enumerate(good.pictures)}
    record = AS_JSON.encode(record_of(good.sample, good.cut_turns))
    named["json"] = record.encode(errors="backslashreplace")  # half a character becomes its JSON escape
    return b"".join(member(f"{key}.{extension}", data) for extension, data in sorted(named.items()))


def _commit(
    folder: Path, sidecars: list[Sidecar], sources: list[str], checks: Checks, max_reject_fraction: float
) -> dict[str, Any]:
    manifest = manifest_of(sidecars, sources, checks)
    rejects, left_out = (rejects_of(sidecars, left_out=value) for value in (False, True))
    for name, those in ((REJECTS, rejects), (LEFT_OUT_ROWS, left_out)):
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in those)
        _write(folder / name, lines.encode(errors="backslashreplace"))
    if not manifest["read"]:
        raise Unusable(f"{folder.name}: the corpus has no rows")
    offered = manifest["read"] - len(left_out)
    if len(rejects) > max_reject_fraction * offered or not manifest["samples"]:
        counted = ", ".join(f"{k} {v}" for k, v in (manifest["reasons"] | manifest["reasons_left_out"]).items())
        first = (rejects or left_out)[0]
        raise Unusable(
            f"{folder.name}: {len(rejects)} of {offered} samples rejected ({counted}), more than "
            f"data.max_reject_fraction={max_reject_fraction}; first: {first['id']}: {first['detail']}; "
            f"all are in {folder / REJECTS}"
        )
    index, entries = io.BytesIO(), entries_of(sidecars)
    np.save(index, entries)
    write_lengths(folder, entries, checks.max_tokens)
    _write(folder / INDEX, index.getvalue())
    _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    _remove_sidecars(folder, len(sidecars))
    return manifest


def _remove_sidecars(folder: Path, shards: int) -> None:
    for number in range(shards):
        (folder / shard_name(number)).with_suffix(".json").unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with _written_whole(path) as file:
        file.write(data)


@contextmanager
def _written_whole(path: Path) -> Iterator[BinaryIO]:
    try:
        with written_whole(path) as file:
            yield file
    except OSError as problem:
        raise Unusable(
            f"{path} cannot be written: {problem.strerror}; run again to go on after the shards before it"
        ) from None
