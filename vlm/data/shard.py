"""One shard, from its rows to a committed tar: what a worker process does.

A shard is committed by its sidecar, NAME.json, which holds its rows of the index and what was rejected. The worker
owns it whole: nobody else writes it, and its bytes depend on its rows alone.
"""

import ctypes
import gc
import hashlib
import json
import os
import pickle
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from zlib_ng.zlib_ng import crc32

from vlm.data.checks import Checked, Checks
from vlm.data.index import record_of, shard_name
from vlm.data.samples import Reject, Row
from vlm.data.summary import Sidecar
from vlm.data.ustar import closing, member
from vlm.errors import Unusable
from vlm.files import begin_sync, written_whole

SYNC_BYTES = 2**23  # of a shard, that are sent to the disk while the next are made
AS_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True)

_assignment: tuple[Path, Checks, list[str]]  # of a worker process: where to write and what to check


def begin_worker(parent: int, *assignment: object) -> None:
    """Prepare a worker process: `assignment` is its folder, its checks and the names of the sources."""
    global _assignment  # noqa: PLW0603 - set once in each worker process
    _assignment = assignment
    gc.disable()  # what comes lives for one sample, or until the shard's end
    end_with(parent)


def end_with(parent: int) -> None:
    """Have this process killed with its parent: it must not outlive a killed run and write beside the next one.

    Ctrl-C and USR2, which reach the whole group, are left to the parent.
    """
    for stop in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(stop, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it was killed before that
            os._exit(1)


def digests(_number: int, pickled: bytes) -> bytes:
    """Return the digests of the rows, one after the other."""
    _, checks, _ = _assignment
    return b"".join(map(checks.digest, pickle.loads(pickled)))


def write_shard(number: int, pickled: bytes) -> Sidecar:
    """Write one shard of rows and its sidecar, unless they are there for these rows; return the sidecar."""
    folder, checks, sources = _assignment
    path = folder / shard_name(number)
    sidecar_path = path.with_suffix(".json")
    of_rows = hashlib.sha256(pickled).hexdigest()
    if sidecar_path.is_file() and (found := json.loads(sidecar_path.read_text())).get("rows") == of_rows:
        return found
    sidecar_path.unlink(missing_ok=True)  # of a corpus that was another one
    rows: list[Row] = pickle.loads(pickled)
    sidecar: Sidecar = {"rows": of_rows}
    sidecar |= {"read": Counter(row.source for row in rows), "entries": [], "digests": [], "rejects": []}
    sidecar["cut_turns"] = 0
    end, on_its_way, digest = 0, 0, hashlib.sha256()
    with written_or_unusable(path) as shard:
        for at, (row, lengths) in enumerate(zip(rows, [*map(checks.lengths, rows)], strict=True)):
            try:
                good = checks.of(row, lengths)
            except Reject as reason:
                found = {"source": row.source, "id": row.id, "reason": reason.code, "detail": reason.detail}
                sidecar["rejects"].append(found)
                continue
            start, crc = end, 0
            for part in members(f"{number:06d}{at:06d}", good):
                shard.write(part)
                digest.update(part)
                crc = crc32(part, crc)
                end += len(part)
            if end - on_its_way > SYNC_BYTES:
                begin_sync(shard, on_its_way, end - on_its_way)
                on_its_way = end
            place = [number, start, end - start, crc, sources.index(row.source)]
            sidecar["entries"].append([*place, len(good.pictures), *good.size, good.tokens, good.targets])
            sidecar["digests"].append(good.digest.hex())
            sidecar["cut_turns"] += good.cut_turns
        shard.write(closing(end))
        digest.update(closing(end))
    sidecar["sha256"] = digest.hexdigest()
    write(sidecar_path, json.dumps(sidecar).encode())
    gc.collect()
    return sidecar


def members(key: str, good: Checked) -> Iterator[bytes]:
    """Yield a WebDataset sample piece by piece as tar members, KEY.jpg, KEY.1.jpg, … and KEY.json, as webdataset's
    writer does.
    """
    named = {(f"{i}." if i else "") + picture.extension: picture.data for i, picture in enumerate(good.pictures)}
    record = AS_JSON.encode(record_of(good.sample, good.cut_turns))
    named["json"] = record.encode(errors="backslashreplace")  # half a character becomes its JSON escape
    return chain.from_iterable(member(f"{key}.{extension}", data) for extension, data in sorted(named.items()))


def write(path: Path, data: bytes) -> None:
    """Write a file whole; raises Unusable if it cannot be written."""
    with written_or_unusable(path) as file:
        file.write(data)


@contextmanager
def written_or_unusable(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that is there whole afterwards, or not at all; raises Unusable if it cannot be written."""
    try:
        with written_whole(path) as file:
            yield file
    except OSError as problem:
        raise Unusable(
            f"{path} cannot be written: {problem.strerror}; run again to go on after the shards before it"
        ) from None
