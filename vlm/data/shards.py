"""Corpora become shards: every sample checked, the good ones written, the others counted with their reason.

What a shard holds is fixed by the order of the corpora (rows k·S to (k+1)·S go to shard k), so neither the number
of workers nor an interruption changes a byte. A shard is committed by its sidecar, NAME.json, which holds its rows
of the index; the sidecars become index.npy, rejects.jsonl and shards.json, and shards.json commits the split.
"""

import ctypes
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
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from tqdm import tqdm

from vlm.config import DataConfig, SourceConfig, SplitConfig
from vlm.data.chat import Chat
from vlm.data.checks import Checks
from vlm.data.index import INDEX, MANIFEST, ROW, record_of, shard_name, tar_size
from vlm.data.pixels import Picture
from vlm.data.sources import Reject, Row, Sample, read
from vlm.errors import Unusable

REJECTS = "rejects.jsonl"
COUNTS = ("read", "samples", "rejected", "cut_turns", "images", "tokens", "targets", "longest")


def build(data: DataConfig, chat: Chat, seed: int, out: Path) -> dict[str, Any]:
    """Write the splits that the settings name into `out`; return the headline figures.

    Raises Unusable if too many samples of a split are rejected, or a corpus is missing or broken.
    """
    figures: dict[str, Any] = {}
    for name, split in (("pretrain", data.pretrain), ("finetune", data.finetune)):
        checks = Checks(chat, split.form, data.max_tokens, data.max_pixels)
        sources = [source.label for source in (*split.sources, *split.held_out)]
        if len({*sources}) < len(sources):
            raise Unusable(f"data.{name}: two sources are called {max(sources, key=sources.count)}: give them a name=")
        for part, rows in _parts(name, split, seed).items():
            figures[part] = write_split(out / part, rows, sources, checks, data)
    if not figures:
        raise Unusable("no corpus is given: set data.pretrain.sources and data.finetune.sources, or choose data=")
    print(table(figures))
    return {part: {key: found[key] for key in (*COUNTS, "reasons")} for part, found in figures.items()}


def table(manifests: dict[str, dict[str, Any]]) -> str:
    """Return the counts of every split as lines of text, with the reasons of its rejects."""
    width = max(map(len, manifests))
    lines = [" ".join([" " * width, *(f"{name:>12}" for name in COUNTS)])]
    for part, manifest in manifests.items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in manifest["reasons"].items())
        lines.append(" ".join([f"{part:{width}}", *(f"{manifest[name]:>12,}" for name in COUNTS), reasons]).rstrip())
    return "\n".join(lines)


def _parts(name: str, split: SplitConfig, seed: int) -> dict[str, Iterator[Row]]:
    """Return the rows that train and the rows that are held out, by the name of their split."""
    fraction = split.held_out_fraction

    def chosen(held_out: bool) -> Iterator[Row]:
        return (row for row in _rows(split.sources) if is_held_out(row, seed, fraction) is held_out)

    parts: dict[str, Iterator[Row]] = {}
    if split.sources:
        parts[name] = chosen(False)
    if split.held_out or fraction:
        kept_back = chosen(True) if fraction else iter(())
        parts[f"{name}_held_out"] = itertools.chain(_rows(split.held_out), kept_back)
    return parts


def is_held_out(row: Row, seed: int, fraction: float) -> bool:
    """Decide by the row's first picture (or its id), so that no picture is on both sides."""
    images = row.sample.images if isinstance(row.sample, Sample) else ()
    name = str(images[0]) if images else f"{row.source}/{row.id}"
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def write_split(
    folder: Path, rows: Iterable[Row], sources: list[str], checks: Checks, data: DataConfig
) -> dict[str, Any]:
    """Write one split, going on after the last whole shard of an interrupted run; return its manifest.

    Raises Unusable if more than data.max_reject_fraction of the rows are rejected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text())
        _remove_sidecars(folder, len(manifest["shards"]))
        return manifest
    sidecars = []
    with (
        tqdm(desc=f"02_shard {folder.name}", unit=" samples", unit_scale=True) as bar,
        ProcessPoolExecutor(
            data.runtime.workers,
            multiprocessing.get_context("fork"),  # the tokenizer is inherited, not copied
            initializer=_begin_worker,
            initargs=(folder, checks, sources),
        ) as pool,
    ):
        for sidecar in _in_order(pool, enumerate(_chunks(rows, data.samples_per_shard)), 2 * data.runtime.workers):
            sidecars.append(sidecar)
            bar.update(sidecar["read"])
            bar.set_postfix(rejected=sum(len(done["rejects"]) for done in sidecars))
    return _commit(folder, sidecars, sources, checks, data.max_reject_fraction)


def _in_order(pool: Executor, jobs: Iterable[tuple[int, list[Row]]], ahead: int) -> Iterator[dict[str, Any]]:
    """Yield the sidecars in order while at most `ahead` shards are read ahead of them."""
    waiting: deque[Future] = deque()
    for job in jobs:
        waiting.append(pool.submit(_write_shard, *job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_assignment: tuple[Path, Checks, list[str]]  # of a worker process: where to write and what to check


def _begin_worker(*assignment: object) -> None:
    global _assignment  # noqa: PLW0603 - set once in each worker process
    _assignment = assignment
    if sys.platform == "linux":  # a worker must not outlive a killed run and write beside the next one
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _rows(sources: list[SourceConfig]) -> Iterator[Row]:
    return itertools.chain.from_iterable(read(source) for source in sources)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _write_shard(number: int, rows: list[Row]) -> dict[str, Any]:
    """Write one shard and its sidecar, unless they are there; return the sidecar."""
    folder, checks, sources = _assignment
    path = folder / shard_name(number)
    sidecar_path = path.with_suffix(".json")
    if sidecar_path.is_file():
        return json.loads(sidecar_path.read_text())
    entries: list[list[int]] = []
    rejects: list[dict[str, str]] = []
    cut_turns = 0
    shard = io.BytesIO()
    with webdataset.TarWriter(shard, user="vlm", group="vlm", mode=0o644, mtime=0, encoder=False) as tar:
        end = 0
        for at, row in enumerate(rows):
            try:
                good = checks.of(row)
            except Reject as reason:
                rejects.append({"source": row.source, "id": row.id, "reason": reason.code, "detail": reason.detail})
                continue
            members = _members(f"{number:06d}{at:06d}", good.sample, good.pictures)
            tar.write(members)
            start, end = end, end + sum(tar_size(data) for name, data in members.items() if name != "__key__")
            place = [number, start, end - start, 0, sources.index(row.source)]
            entries.append([*place, len(good.pictures), *good.size, good.tokens, good.targets])
            cut_turns += good.cut_turns
    data = shard.getvalue()
    for entry in entries:
        entry[3] = zlib.crc32(data[entry[1] : entry[1] + entry[2]])
    write_whole(path, data)
    digest = hashlib.sha256(data).hexdigest()
    sidecar = {"read": len(rows), "entries": entries, "rejects": rejects, "cut_turns": cut_turns, "sha256": digest}
    write_whole(sidecar_path, json.dumps(sidecar).encode())
    return sidecar


def _members(key: str, sample: Sample, pictures: list[Picture]) -> dict[str, Any]:
    """Return a WebDataset sample: KEY.jpg, KEY.1.jpg, … and KEY.json."""
    named = {(f"{i}." if i else "") + picture.extension: picture.data for i, picture in enumerate(pictures)}
    record = json.dumps(record_of(sample), ensure_ascii=False, sort_keys=True)
    as_json = record.encode(errors="backslashreplace")  # half a character becomes its JSON escape
    return {"__key__": key, **named, "json": as_json}


def _commit(
    folder: Path, sidecars: list[dict[str, Any]], sources: list[str], checks: Checks, max_reject_fraction: float
) -> dict[str, Any]:
    rejects = [reject for sidecar in sidecars for reject in sidecar["rejects"]]
    lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    (folder / REJECTS).write_text(lines, encoding="utf-8", errors="backslashreplace")
    read_rows = sum(sidecar["read"] for sidecar in sidecars)
    reasons = Counter(reject["reason"] for reject in rejects)
    if not read_rows:
        raise Unusable(f"{folder.name}: the corpus has no rows")
    if len(rejects) > max_reject_fraction * read_rows or len(rejects) == read_rows:
        counted = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise Unusable(
            f"{folder.name}: {len(rejects)} of {read_rows} samples rejected ({counted}), more than "
            f"data.max_reject_fraction={max_reject_fraction}; first: {rejects[0]['id']}: {rejects[0]['detail']}; "
            f"all are in {folder / REJECTS}"
        )
    rows = np.array([tuple(entry) for sidecar in sidecars for entry in sidecar["entries"]], ROW)
    index = io.BytesIO()
    np.save(index, rows)
    write_whole(folder / INDEX, index.getvalue())
    shards = [
        {"name": shard_name(i), "samples": len(sidecar["entries"]), "sha256": sidecar["sha256"]}
        for i, sidecar in enumerate(sidecars)
    ]
    manifest = {
        "samples": len(rows),
        "read": read_rows,
        "rejected": len(rejects),
        "reasons": dict(reasons.most_common()),
        "cut_turns": sum(sidecar["cut_turns"] for sidecar in sidecars),
        "images": int(rows["images"].sum()),
        "tokens": int(rows["tokens"].sum()),
        "targets": int(rows["targets"].sum()),
        "longest": int(rows["tokens"].max()),
        "form": checks.form.value,
        "image_tokens": checks.chat.image_tokens,
        "max_tokens": checks.max_tokens,
        "sources": sources,
        "fingerprint": hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
        "shards": shards,
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    _remove_sidecars(folder, len(shards))
    return manifest


def _remove_sidecars(folder: Path, shards: int) -> None:
    for number in range(shards):
        (folder / shard_name(number)).with_suffix(".json").unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there in full or not at all, also after a power cut."""
    waiting = path.with_name(path.name + ".tmp")
    with waiting.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    waiting.rename(path)
