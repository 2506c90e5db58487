"""From a JPEG to the tower's input, beside transformers' image processors: pictures a second on one thread.

    python -m benchmarks.pixels

Ours stops at uint8, for the device normalises; what that leaves out is timed too. Pixels are compared after
normalisation, in grey levels.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.corpus import CC3M, COCO, make_corpus
from benchmarks.environments import Missing, python_of
from benchmarks.table import OURS, Row, show

FAST, SLOW, WHOLE = "HF fast (torchvision)", "HF slow (Pillow)", "ours, normalised on the CPU too"
NAMES = (OURS, WHOLE, FAST, SLOW)
SIZE, MEAN, STD = 336, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PICTURES = 32
GOAL = 1.7


def main() -> None:
    """Measure; print the tables and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--child", nargs=3, metavar=("NAME", "FOLDER", "SECONDS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        name, folder, seconds = chosen.child
        print(json.dumps({"rate": time_it(name, Path(folder), float(seconds))}))
        return
    rows = measure(chosen.rounds, chosen.seconds)
    show(rows)
    print(json.dumps([row.as_json() for row in rows]))


def measure(rounds: int, seconds: float = 3.0) -> list[Row]:
    """Return a row for each kind of picture."""
    rows = []
    for kind in (CC3M, COCO):
        row = Row(f"pixels, {kind.name} {kind.width}x{kind.height}", "pictures/s", GOAL, against=FAST)
        with tempfile.TemporaryDirectory() as place:
            make_corpus(Path(place) / "corpus", kind, PICTURES, seed=0)
            for number in range(rounds):
                for name in NAMES:
                    if name in row.missing:
                        continue
                    try:
                        row.figures.setdefault(name, []).append(_turn(name, place, seconds))
                        print(f"  round {number + 1}: {name} {row.figures[name][-1]:,.0f} pictures/s", flush=True)
                    except Missing as reason:
                        del row.figures[name]
                        row.missing[name] = str(reason)
            for name in (FAST, SLOW):
                if name in row.figures:
                    off = np.load(f"{place}/{WHOLE}.npy") - np.load(f"{place}/{name}.npy")
                    levels = np.abs(off).max(axis=(0, 2, 3)) * np.array(STD) * 255
                    row.notes[name] = f"its pixels differ from ours by at most {levels.max():.2f} grey levels"
        rows.append(row)
    return rows


def _turn(name: str, place: str, seconds: float) -> float:
    python = python_of("torchvision") if name == FAST else sys.executable
    root = str(Path(__file__).parents[1])
    command = [python, "-m", "benchmarks.pixels", "--child", name, place, str(seconds)]
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    if done.returncode:
        raise Missing(done.stderr.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])["rate"]


def time_it(name: str, folder: Path, seconds: float) -> float:
    """Return pictures a second of a contestant; leave what it makes of the first ones in `folder`."""
    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted((folder / "corpus/images").iterdir())]
    work = contestant(name)
    if name != OURS:
        np.save(folder / name, np.stack([np.asarray(work(data)).reshape(3, SIZE, SIZE) for data in files[:8]]))
    for data in files:
        work(data)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for data in files:
            work(data)
        count += len(files)
    return count / (time.perf_counter() - start)


def contestant(name: str) -> Callable[[bytes], object]:
    """Return what makes the tower's input of a JPEG."""
    if name in (OURS, WHOLE):
        from vlm.config import Geometry
        from vlm.data.pixels import Preprocessing, decode, normalise, prepare

        how = Preprocessing(SIZE, MEAN, STD, Geometry.crop)
        if name == OURS:
            return lambda data: prepare(decode(data), how)
        return lambda data: normalise(prepare(decode(data), how)[None], how, torch.float32)
    edges = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    if name == FAST:
        named = _missing_operators()
        from transformers import CLIPImageProcessor

        processor = CLIPImageProcessor(**edges)
        if "Pil" in type(processor).__name__:
            raise SystemExit("transformers does not find torchvision")
        return lambda data, _=named: processor(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(**edges)
    return lambda data: processor(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]


def _missing_operators() -> torch.library.Library | None:
    """Name the operators that torchvision's build cannot bring to a torch without CUDA; else it is not imported."""
    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


if __name__ == "__main__":
    main()
