"""Weights re-cut under other names, one tensor at a time, so that memory does not grow with the model.

Input files are mapped, never loaded. The output is planned from the names, shapes and types in them before the first
weight is read, so a checkpoint that does not fit its settings is refused before anything is written. Each file is
then written in one pass: the format of safetensors is the length of the header (8 bytes, little-endian), the header
(JSON: type, shape and place of each tensor) and the tensors' bytes without gaps.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from vlm.errors import Unusable

MAX_FILE_BYTES = 5 * 10**9
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """What becomes of a stored tensor: it is cut along its first axis into as many equal parts as it has new names."""

    shape: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """One tensor of the output: some rows of one of the input."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    stored: str
    first_row: int

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def find_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """Return the weight files of a folder: safetensors, else pickles if they are allowed.

    Raises Unusable if there are none, a file that the index names is missing, or there are only pickles and they
    are not allowed.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if not index.is_file() and not (folder / name).is_file():
            continue
        if name.endswith(".bin") and not allow_pickle:
            raise Unusable(f"{folder} holds its weights as pickles only: to read them as data, give --allow-pickle")
        return _indexed(index) if index.is_file() else [folder / name]
    raise Unusable(f"{folder} holds no weights: neither model.safetensors nor its index is there")


def plan_cuts(files: list[Path], layout: Mapping[str, Piece], ignored: re.Pattern[str]) -> list[Cut]:
    """Return the output's tensors in the order in which the input stores them; names that match `ignored` are none.

    Raises Unusable if a file is damaged, or a tensor is missing, unknown, there twice, of another shape than the
    layout's, or not of 16 or 32 bit floating point.
    """
    cuts: list[Cut] = []
    found: set[str] = set()
    for file in files:
        for name, (shape, dtype) in _described(file).items():
            if ignored.search(name):
                continue
            _check(name, shape, dtype, layout.get(name), f"{file.parent.name}/{file.name}")
            if name in found:
                raise Unusable(f"{file}: {name} is in another file as well")
            found.add(name)
            rows = shape[0] // len(layout[name].names)
            for number, new in enumerate(layout[name].names):
                cuts.append(Cut(new, (rows, *shape[1:]), DTYPES[dtype], file, name, number * rows))
    missing = [name for name in layout if name not in found]
    if missing:
        raise Unusable(f"{files[0].parent}: {missing[0]} is in none of the files; {len(missing)} missing in all")
    return cuts


def widest_dtype(cuts: list[Cut]) -> torch.dtype:
    """Return the type that holds every tensor without loss: theirs, where it is one."""
    return reduce(torch.promote_types, {cut.dtype for cut in cuts})


def write_cuts(cuts: list[Cut], out: Path, label: str) -> int:
    """Write files of at most MAX_FILE_BYTES (more only for a tensor that is larger alone) and their index; count them."""
    groups = _grouped(cuts)
    tensors = _tensors(cuts)
    weight_map = {}
    size = sum(cut.size for cut in cuts)
    with tqdm(desc=label, total=size, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        for number, group in enumerate(groups, start=1):
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            weight_map |= {cut.name: file for cut in group}
            with (out / file).open("wb") as handle:
                handle.write(_header(group))
                for tensor in islice(tensors, len(group)):
                    bar.update(handle.write(tensor.contiguous().view(torch.uint8).numpy().data))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return len(groups)


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.with_name(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unusable(f"{index} is no index of weight files") from None
    for file in files:
        if not file.is_file():
            raise Unusable(f"{file} is not there, though {index.name} names it")
    if not files:
        raise Unusable(f"{index} names no file")
    return files


@contextmanager
def _opened(file: Path) -> Iterator[dict[str, Any]]:
    """Yield a file's tensors by name, none of them read yet: each is had by a slice of its rows."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            yield {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - it is no mapping
    else:
        yield torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _described(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type (in the words of safetensors) of each tensor in a file."""
    try:
        with _opened(file) as stored:
            if file.suffix == ".safetensors":
                return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in stored.items()}
            return {name: (tuple(part.shape), CODES.get(part.dtype, str(part.dtype))) for name, part in stored.items()}
    except Exception as problem:  # safetensors, zipfile and pickle raise many kinds for a damaged file
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise Unusable(f"{file} cannot be read: {reason}") from None


def _check(name: str, shape: tuple[int, ...], dtype: str, piece: Piece | None, file: str) -> None:
    if piece is None:
        raise Unusable(f"{file}: {name} is no weight of the language model that config.json describes")
    if shape != piece.shape:
        raise Unusable(f"{file}: {name} has the shape {shape}, and config.json asks for {piece.shape}")
    if dtype not in DTYPES:
        raise Unusable(f"{file}: {name} is stored as {dtype}: only {', '.join(DTYPES)} can be converted")


def _grouped(cuts: list[Cut]) -> list[list[Cut]]:
    groups: list[list[Cut]] = [[]]
    size = 0
    for cut in cuts:
        if groups[-1] and size + cut.size > MAX_FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(cut)
        size += cut.size
    return groups


def _tensors(cuts: list[Cut]) -> Iterator[Tensor]:
    """Yield the tensors of the cuts in their order, with one input file open at a time."""
    for file, group in groupby(cuts, key=lambda cut: cut.file):
        with _opened(file) as stored:
            for cut in group:
                yield stored[cut.stored][cut.first_row : cut.first_row + cut.shape[0]]


def _header(cuts: list[Cut]) -> bytes:
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for cut in cuts:
        described[cut.name] = {
            "dtype": CODES[cut.dtype],
            "shape": list(cut.shape),
            "data_offsets": [begin, begin + cut.size],
        }
        begin += cut.size
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # the weights begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text
