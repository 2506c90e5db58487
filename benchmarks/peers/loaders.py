"""One loader over one corpus in one process: its rate and memory, its state, or what it gives after a state.

    python -m benchmarks.peers.loaders NAME ASKED.json

Each makes the same of a sample: the picture decoded (by Pillow in all but ours), resized and cropped to 336 pixels, and its
record parsed.
Prints one line of JSON.
"""

import importlib
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.stored import convert, reads

BATCH = 32
SIZE = 336
COMPARED = 20  # batches after the position
Ids = list[str]
Loader = tuple[Iterator[Ids], Callable[[], Any]]  # the ids of batch after batch, and the state at any time


def sample_of(picture: bytes, record: bytes) -> tuple[str, torch.Tensor]:
    """Return a sample's id and its colours, uint8 (336, 336, 3)."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return str(json.loads(bytes(record))["id"]), torch.from_numpy(
        np.array(image.crop((left, top, left + SIZE, top + SIZE)))
    )


def collate(samples: list[tuple[str, torch.Tensor]]) -> tuple[Ids, torch.Tensor]:
    """Return the ids of a batch and its colours (B, 336, 336, 3)."""
    return [name for name, _ in samples], torch.stack([colours for _, colours in samples])


def ids_of(batches: Iterator[tuple[Ids, torch.Tensor]]) -> Iterator[Ids]:
    """Yield the ids of each batch."""
    for names, _ in batches:
        yield names


def ours(folder: Path, workers: int, position: int | None) -> Loader:
    """Our loader as training has it; it also tokenizes and packs. The state is the number of steps."""
    from benchmarks.corpus import small_chat
    from vlm.config import Geometry
    from vlm.data.index import Split
    from vlm.data.loader import Steps, load_steps
    from vlm.data.pixels import Preprocessing
    from vlm.data.plan import make_plan

    split = Split(folder / "split")
    limits = {"pack_tokens": 8192, "pack_images": 64, "packing": True}
    plan = make_plan(split.rows, 0, epochs=1, steps=None, samples_per_step=BATCH, **limits)
    how = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), Geometry.crop)
    steps = Steps(split, plan, small_chat(), how, rank=0, ranks=1, rows_at_once=4)
    loaded, done = load_steps(steps, position or 0, workers), itertools.count(position or 0)
    given = ([str(number) for batch in batches for number in batch.samples] for batches in loaded)
    return (ids for ids, _ in zip(given, done, strict=False)), lambda: next(done)


def loose(folder: Path, workers: int, position: int | None) -> Loader:
    """A map-style Dataset on loose files and a JSON list, resumed by position as transformers' Trainer does."""
    samples = Loose(folder)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[i : i + BATCH] for i in range((position or 0) * BATCH, len(order), BATCH)]
    loader = DataLoader(samples, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    return counted(loader, position or 0)


class Loose(Dataset):
    """Pictures as files, beside a list that is read whole."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "loose"
        self.records = json.loads((folder / "chat.json").read_text())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, at: int) -> tuple[str, torch.Tensor]:
        record = self.records[at]
        return sample_of((self.images / record["image"]).read_bytes(), json.dumps(record).encode())


def webdataset(folder: Path, workers: int, position: int | None, *, shuffles: bool = False) -> Loader:
    """Webdataset, which has no state: it resumes by reading up to the position."""
    import webdataset as wds

    urls = sorted(map(str, (folder / "split").glob("*.tar")))
    stages = [
        wds.SimpleShardList(urls),
        *([wds.detshuffle(len(urls), seed=0)] if shuffles else []),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        *([wds.detshuffle(1000, seed=0)] if shuffles else []),
        wds.map(lambda sample: sample_of(sample.get("jpg") or sample["0.jpg"], sample["json"])),
        wds.batched(BATCH, collation_fn=collate),
    ]
    loader = DataLoader(wds.DataPipeline(*stages), batch_size=None, num_workers=workers)
    given, state = counted(loader, 0)
    return itertools.islice(given, position or 0, None), state


def streaming(folder: Path, workers: int, state: dict | None) -> Loader:
    """mosaicml-streaming on MDS shards."""
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Samples(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[str, torch.Tensor]:
            stored = super().__getitem__(at)
            return sample_of(stored["picture"], stored["record"])

    samples = Samples(local=str(folder / "mds"), shuffle=True, shuffle_seed=0, batch_size=BATCH, num_canonical_nodes=1)
    loader = StreamingDataLoader(samples, batch_size=BATCH, num_workers=workers, collate_fn=collate)
    if state is not None:
        loader.load_state_dict(state)
    done = [0 if state is None else state["sample_in_epoch"]]

    def given() -> Iterator[Ids]:
        for names in ids_of(loader):
            done[0] += len(names)
            yield names

    return given(), lambda: samples.state_dict(done[0], False)


def litdata(folder: Path, workers: int, state: dict | None) -> Loader:
    """Litdata on its own chunks."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Samples(StreamingDataset):
        def __getitem__(self, at: object) -> tuple[str, torch.Tensor]:
            stored = super().__getitem__(at)
            return sample_of(stored["picture"], stored["record"])

    samples = Samples(str(folder / "litdata"), shuffle=True, seed=0)
    loader = StreamingDataLoader(samples, batch_size=BATCH, num_workers=workers, collate_fn=collate)
    if state is not None:
        loader.load_state_dict(state)
    return ids_of(loader), loader.state_dict


def energon(folder: Path, workers: int, state: object | None) -> Loader:
    """Energon on the same tars with its own index; its state is a pickle of torch.save."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        TextSample,
        WorkerConfig,
        basic_sample_keys,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )

    @stateless
    def cook(sample: dict) -> TextSample:
        name, colours = sample_of(sample.get("jpg") or sample["0.jpg"], sample["json"])
        return TextSample(**basic_sample_keys(sample), text=(name, colours))

    class Encoder(DefaultTaskEncoder):
        cookers = [Cooker(cook)]
        decoder = None

        @stateless
        def batch(self, samples: list) -> tuple[Ids, torch.Tensor]:
            return collate([sample.text for sample in samples])

    config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
    settings = {"batch_size": BATCH, "shuffle_buffer_size": 1000, "max_samples_per_sequence": 100}
    samples = get_train_dataset(folder / "energon", worker_config=config, task_encoder=Encoder(), **settings)
    loader = get_savable_loader(samples)
    if state is not None:
        loader.restore_state_rank(state)
    return ids_of(loader), loader.save_state_rank


IMPORTS = {  # what a loader needs, so that no import is timed
    "ours": ("benchmarks.corpus", "vlm.data.loader", "vlm.data.plan"),
    "mosaicml-streaming": ("streaming",),
    "litdata": ("litdata",),
    "Energon": ("megatron.energon",),
}
NOT_READ = {"webdataset, shuffled": "as in order", "Energon": "it gives no sample by number"}
LOADERS = {
    "ours": ours,
    "webdataset, sequential": webdataset,
    "webdataset, shuffled": lambda *asked: webdataset(*asked, shuffles=True),
    "torch Dataset, loose files": loose,
    "mosaicml-streaming": streaming,
    "litdata": litdata,
    "Energon": energon,
}


def counted(loader: DataLoader, first: int) -> Loader:
    """Return the ids of a loader's batches, and their number so far as the state."""
    done = [first]

    def given() -> Iterator[Ids]:
        for names in ids_of(loader):
            done[0] += 1
            yield names

    return given(), lambda: done[0]


def rate(name: str, folder: Path, workers: int, batches: int) -> dict[str, float]:
    """Return seconds to the first batch, samples/s of the next ones, and memory of all processes in MB."""
    start = time.perf_counter()
    given, _ = LOADERS[name](folder, workers, None)
    next(given)
    first = time.perf_counter() - start
    start = time.perf_counter()
    samples = sum(len(ids) for ids in itertools.islice(given, batches))
    return {"first": first, "rate": samples / (time.perf_counter() - start), "megabytes": memory()}


def position(name: str, folder: Path, workers: int, batches: int, state: Path) -> dict[str, Any]:
    """Read up to a position, leave the state of a loader there in a file, and return what it gives next."""
    given, state_now = LOADERS[name](folder, workers, None)
    for _ in range(batches):
        next(given)
    torch.save(state_now(), state)
    return {"next": list(itertools.islice(given, COMPARED)), "bytes": state.stat().st_size}


def resume(name: str, folder: Path, workers: int, state: Path) -> dict[str, Any]:
    """Return the seconds from a saved state to the first batch, and the ids that follow."""
    start = time.perf_counter()
    given, _ = LOADERS[name](folder, workers, torch.load(state, weights_only=False))  # written by `position`
    first = [next(given)]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "next": first + list(itertools.islice(given, COMPARED - 1))}


def memory() -> float:
    """Return the proportional share (PSS) of this process and its children, MB."""
    mine = Path(f"/proc/{os.getpid()}/task")
    children = [child for task in mine.iterdir() for child in (task / "children").read_text().split()]
    total = 0
    for process in (os.getpid(), *children):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def _without_torchvision() -> None:
    """Let mosaicml-streaming be imported where torchvision has no build; its classes for it are not used here."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = sys.modules.setdefault(name, ModuleType(name))
        module.__spec__ = ModuleSpec(name, None)
        module.VisionDataset, module.to_tensor = object, None


def main() -> None:
    """Do what is asked and print what came of it."""
    name, asked = sys.argv[1], json.loads(sys.argv[2])
    if name == "mosaicml-streaming":
        _without_torchvision()
    for module in IMPORTS.get(name, ("webdataset",)):
        importlib.import_module(module)
    work = {"rate": rate, "reads": reads, "position": position, "resume": resume, "convert": convert}[asked.pop("do")]
    paths = {key: Path(asked[key]) for key in ("folder", "state") if key in asked}
    print(json.dumps(work(name, **(asked | paths))), flush=True)
    os._exit(0)  # workers that read ahead are not waited for


if __name__ == "__main__":
    main()
