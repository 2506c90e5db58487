"""How fast stage 02 checks and writes, beside decoding alone, webdataset's own writer and img2dataset.

python -m benchmarks.shard                                      seconds of each, a table of ratios
python -m benchmarks.shard --peers                              with img2dataset and MDSWriter, from environments of their own
"""

import argparse
import functools
import io
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import webdataset
from PIL import Image

from benchmarks.corpus import CC3M, COCO, Kind, make_corpus, small_chat
from benchmarks.environments import Missing, python_of
from benchmarks.timing import in_turns, load, spread
from vlm.config import DataConfig, Form, ShardRuntime, SourceConfig, SplitConfig
from vlm.data.chat import Chat
from vlm.data.checks import Checked, Checks
from vlm.data.duplicates import NONE
from vlm.data.pictures import Picture
from vlm.data.shards import write_split
from vlm.data.sources import read

SHARDS = 8  # of each corpus, so that two processes end together
DECODE_2, CHECKED_2, CHECKED_1 = "decode, 2 processes", "stage 02, 2 processes", "stage 02, 1 process"
DECODE_1, PLAIN_1, WRITER = "decode, 1 process", "stage 02 without checks, 1 process", "webdataset.ShardWriter"
PEER, MDS = "img2dataset, 2 processes", "MDSWriter, 1 process"
Figures = dict[str, list[float]]  # of each contender, by round


class Unchecked(Checks):
    """Takes every row as it is, to time the writing alone."""

    def lengths(self, row):  # noqa: ANN001, ANN201, D102
        return None

    def of(self, row, lengths):  # noqa: ANN001, ANN201, D102
        pictures = [Picture(image.read(), "jpg", 1, 1) for image in row.sample.images]
        return Checked(row.sample, pictures, 1, 1, 0, NONE)


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk and where its contenders write."""

    kind: Kind
    listed: Path  # chat.json
    out: Path
    count: int

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.listed.parent / "images").iterdir())

    def time(self, work: Callable[[Path], tuple[float, float] | None]) -> tuple[float, float]:
        """Return pictures a second of `work`, which is given an empty folder, and its CPU microseconds a picture.

        Work that counts by itself, without its start, returns its seconds and CPU seconds.
        """
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        start, used = time.perf_counter(), sum(os.times()[:4])
        told = work(self.out)
        seconds, cpu = told or (time.perf_counter() - start, sum(os.times()[:4]) - used)
        return self.count / seconds, 1e6 * cpu / self.count


def decode_all(paths: list[Path]) -> None:
    """Decode pictures as Pillow does, and nothing else."""
    for path in paths:
        Image.open(io.BytesIO(path.read_bytes())).load()


def decode(corpus: Corpus, processes: int) -> None:
    """Decode the corpus in `processes` processes."""
    paths = corpus.pictures
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        parts = [paths[i::SHARDS] for i in range(SHARDS)]
        list(pool.map(decode_all, parts))


def shard(corpus: Corpus, out: Path, chat: Chat, checks: type[Checks], workers: int) -> None:
    """Run stage 02's writing, from the JSON list to the index."""
    source = SourceConfig(path=str(corpus.listed), images=str(corpus.listed.parent / "images"))
    split = SplitConfig(sources=[source], form=Form.chat)
    data = DataConfig(finetune=split, samples_per_shard=corpus.count // SHARDS, runtime=ShardRuntime(workers=workers))
    written = write_split(
        out, read(source), [source.label], checks(chat, Form.chat, data.max_tokens, data.max_pixels), data
    )
    if written["samples"] != corpus.count:
        raise SystemExit(f"{written['rejected']} of {corpus.count} samples were rejected")


def write_plainly(corpus: Corpus, out: Path) -> None:
    """Write the same samples with webdataset's own writer, in one process."""
    images = corpus.listed.parent / "images"
    pattern = str(out / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=corpus.count // SHARDS, verbose=0) as writer:
        for record in json.loads(corpus.listed.read_text()):
            said = json.dumps(record["conversations"]).encode()
            writer.write({"__key__": record["id"], "jpg": (images / record["image"]).read_bytes(), "json": said})


def run_img2dataset(corpus: Corpus, out: Path, python: str) -> None:
    """Have img2dataset write the same pictures, as they are, from file addresses."""
    urls = corpus.listed.parent / "urls.txt"
    urls.write_text("".join(f"file://{path}\n" for path in corpus.pictures))
    settings = {
        "url_list": str(urls),
        "output_folder": str(out),
        "output_format": "webdataset",
        "processes_count": 2,
        "thread_count": 8,
        "resize_mode": "no",
        "disable_all_reencoding": True,
        "number_sample_per_shard": corpus.count // SHARDS,
    }
    code = f"import img2dataset; img2dataset.download(**{settings!r})"
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run([python, "-c", code], check=True, capture_output=True, cwd=out, env=environment)
    written = sum(json.loads(path.read_text())["successes"] for path in out.glob("*_stats.json"))
    if written != corpus.count:
        raise SystemExit(f"img2dataset wrote {written} of {corpus.count} pictures")


def run_mds(corpus: Corpus, out: Path, python: str) -> tuple[float, float]:
    """Have mosaicml-streaming write the same samples in its own format; return its seconds and CPU seconds."""
    (out / "loose").symlink_to(corpus.listed.parent / "images")
    (out / "chat.json").symlink_to(corpus.listed)
    asked = json.dumps({"do": "convert", "folder": str(out)})
    command = [python, Path(__file__).parent / "peers/loaders.py", "mosaicml-streaming", asked]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told["seconds"], told["cpu_seconds"]


def measure(corpus: Corpus, rounds: int, peers: dict[str, str]) -> tuple[Figures, Figures]:
    """Return pictures a second, and CPU microseconds a picture, of every contender by round; peers by interpreter."""
    chat = small_chat()
    contenders: dict[str, Callable[[Path], tuple[float, float] | None]] = {
        DECODE_1: lambda _: decode(corpus, 1),
        DECODE_2: lambda _: decode(corpus, 2),
        CHECKED_1: lambda out: shard(corpus, out / "split", chat, Checks, 1),
        CHECKED_2: lambda out: shard(corpus, out / "split", chat, Checks, 2),
        PLAIN_1: lambda out: shard(corpus, out / "split", chat, Unchecked, 1),
        WRITER: lambda out: write_plainly(corpus, out),
    }
    for name, run_peer in ((PEER, run_img2dataset), (MDS, run_mds)):
        if name in peers:
            contenders[name] = functools.partial(
                lambda how, python, out: how(corpus, out, python), run_peer, peers[name]
            )
    cpu: Figures = {name: [] for name in contenders}

    def run(name: str) -> float:
        rate, used = corpus.time(contenders[name])
        cpu[name].append(used)
        return rate

    return in_turns({name: functools.partial(run, name) for name in contenders}, rounds), cpu


def report(rates: Figures, cpu: Figures) -> dict[str, float]:
    """Print the table; return the ratios of the medians, of time and of CPU time."""
    middle = {name: statistics.median(figures) for name, figures in rates.items()}
    used = {name: statistics.median(figures) for name, figures in cpu.items()}
    print(f"  {'':36}{'pictures/s, lowest to highest':>34}{'of decode':>11}{'of writer':>11}{'CPU us each':>13}")
    for name, figures in rates.items():
        ratios = f"{middle[name] / middle[DECODE_2]:>11.2f}{middle[name] / middle[WRITER]:>11.2f}"
        print(f"  {name:36}{spread(figures):>34}{ratios}{used[name]:>13,.0f}")
    found = {
        "checked, of decoding in 2 processes": middle[CHECKED_2] / middle[DECODE_2],
        "checked, of decoding in 2 processes, by CPU time": used[DECODE_2] / used[CHECKED_2],
        "checked, of decoding, 1 process": middle[CHECKED_1] / middle[DECODE_1],
        "checked, of decoding, 1 process, by CPU time": used[DECODE_1] / used[CHECKED_1],
        "without checks, of ShardWriter": middle[PLAIN_1] / middle[WRITER],
        "without checks, of ShardWriter, by CPU time": used[WRITER] / used[PLAIN_1],
    }
    if MDS in middle:
        found["without checks, of MDSWriter"] = middle[PLAIN_1] / middle[MDS]
    if PEER in middle:
        found["checked, of img2dataset"] = middle[CHECKED_2] / middle[PEER]
        found["checked, of img2dataset, by CPU time"] = used[PEER] / used[CHECKED_2]
    for name, ratio in found.items():
        print(f"  {name:52} {ratio:.2f}")
    return {name: round(ratio, 3) for name, ratio in found.items()}


def interpreters() -> tuple[dict[str, str], dict[str, str]]:
    """Return the peers' interpreters by contender, and why one is missing."""
    found, missing = {}, {}
    for name, environment in ((PEER, "img2dataset"), (MDS, "streaming")):
        try:
            found[name] = python_of(environment)
        except Missing as reason:
            missing[name] = str(reason)
            print(f"{name} takes no part: {reason}")
    return found, missing


def main() -> None:
    """Measure both kinds of corpora; print the tables and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--coco", type=int, default=1600, help="pictures of 640x480, about 150 KB")
    parser.add_argument("--cc3m", type=int, default=8000, help="pictures of 336x252, about 11 KB")
    parser.add_argument("--peers", action="store_true", help="img2dataset and MDSWriter too; makes their environments")
    chosen = parser.parse_args()
    peers, missing = interpreters() if chosen.peers else ({}, {})
    found = {"cpus": os.cpu_count(), "load_before": load(), "missing": missing}
    with tempfile.TemporaryDirectory() as folder:
        for kind, count in ((COCO, chosen.coco), (CC3M, chosen.cc3m)):
            listed = make_corpus(Path(folder) / kind.name, kind, count, seed=0)
            corpus = Corpus(kind, listed, Path(folder) / "out", count)
            size = sum(path.stat().st_size for path in corpus.pictures) / count
            print(f"{kind.name}: {count} pictures of {kind.width}x{kind.height}, {size / 1000:.0f} KB")
            decode(corpus, 2)  # into the page cache
            rates, cpu = measure(corpus, chosen.rounds, peers)
            found[kind.name] = {"pictures_per_second": rates, "cpu_microseconds": cpu, "ratios": report(rates, cpu)}
    found["load_after"] = load()
    print(f"load average {found['load_before']} before, {found['load_after']} after, {found['cpus']} processors")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
