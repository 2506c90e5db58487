"""How the corpus of a loader lies on disk: written in a peer's own format, and read sample by sample.

loose/ and chat.json       pictures beside a JSON list
split/                     ours, whose tars are ordinary WebDataset tars
mds/, litdata/, energon/   mosaicml-streaming, litdata, Megatron-Energon
"""

import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path


def convert(name: str, folder: Path) -> dict[str, float]:
    """Write the corpus in a loader's own format, beside the others; return the seconds and those of its processor."""
    start, used = time.perf_counter(), time.process_time()
    _convert(name, folder)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}


def _convert(name: str, folder: Path) -> None:
    if name == "Energon":
        from click.testing import CliRunner
        from megatron.energon.tools.prepare import command

        (folder / "energon").mkdir()
        for tar in (folder / "split").glob("*.tar"):
            os.link(tar, folder / "energon" / tar.name)
        options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
        done = CliRunner().invoke(command, [str(folder / "energon"), *options, "--num-workers", "2"])
        if done.exit_code:
            raise SystemExit(f"energon prepare: {done.output.splitlines()[-1:]} {done.exception!r}")
        return
    images, records = folder / "loose", json.loads((folder / "chat.json").read_text())
    samples = ({"picture": (images / r["image"]).read_bytes(), "record": json.dumps(r).encode()} for r in records)
    if name == "mosaicml-streaming":
        from streaming import MDSWriter

        columns = {"picture": "bytes", "record": "bytes"}
        with MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=8 << 20) as writer:
            for sample in samples:
                writer.write(sample)
    else:
        from litdata.streaming.writer import BinaryWriter

        (folder / "litdata").mkdir()
        writer = BinaryWriter(str(folder / "litdata"), chunk_bytes=8 << 20)
        for at, sample in enumerate(samples):
            writer[at] = sample
        writer.done()
        writer.merge()


def reads(name: str, folder: Path, count: int) -> dict[str, float]:
    """Return reads a second of picture and record, each let go before the next: at random, but webdataset in order.

    Nothing is decoded. `bytes` is what each gives as it lies there; of ours `reads` is with its checksum compared and its
    record parsed.
    """
    found = _reads(_reader(name, folder), count)
    return {"reads": found, "bytes": _reads(_bytes_alone(folder), count) if name == "ours" else found}


def _reads(reader: tuple[Callable[[list[int]], Iterator], int], count: int) -> float:
    read, total = reader
    wanted = random.Random(0).choices(range(total), k=count)
    sum(1 for _ in read(wanted[:10]))
    start = time.perf_counter()
    done = sum(1 for _ in read(wanted))  # webdataset's are fewer where the corpus is small
    return done / (time.perf_counter() - start)


def _reader(name: str, folder: Path) -> tuple[Callable[[list[int]], Iterator], int]:
    if name == "ours":
        from vlm.data.index import Split

        split = Split(folder / "split")
        return partial(map, split.read), len(split)
    if name.startswith("webdataset"):
        import webdataset as wds

        urls = sorted(map(str, (folder / "split").glob("*.tar")))
        stages = wds.SimpleShardList(urls), wds.tarfile_to_samples()
        return lambda wanted: itertools.islice(wds.DataPipeline(*stages), len(wanted)), 1
    if name.startswith("torch"):
        records = json.loads((folder / "chat.json").read_text())
        paths = [folder / "loose" / record["image"] for record in records]
        return partial(map, lambda number: paths[number].read_bytes()), len(paths)
    if name == "mosaicml-streaming":
        from streaming import StreamingDataset

        stored = StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=1)
    else:
        from litdata import StreamingDataset

        stored = StreamingDataset(str(folder / "litdata"))
    return partial(map, stored.__getitem__), len(stored)


def _bytes_alone(folder: Path) -> tuple[Callable[[list[int]], Iterator], int]:
    from vlm.data.index import Split, members_of, shard_name

    split = Split(folder / "split")
    files = [os.open(split.folder / shard_name(shard), os.O_RDONLY) for shard in range(len(split.manifest["shards"]))]

    def read(number: int) -> tuple[bytes, tuple[bytes, ...]]:
        shard, offset, size, *_ = split.rows[number].item()
        return members_of(os.pread(files[shard], size, offset))

    return partial(map, read), len(split)
