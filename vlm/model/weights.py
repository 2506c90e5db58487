"""Weight files, tensor by tensor: no more than one tensor of a checkpoint is in memory at a time.

Files are read and written plainly, not mapped: mapped pages count as memory in use, and a checkpoint in float32
would take three times the room of its bfloat16 copy.
"""

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.errors import Unusable

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
CODES = {dtype: code for code, dtype in DTYPES.items()}
READABLE = ("model.safetensors.index.json", "model.safetensors")
PIECE = 1 << 24  # elements that are converted at once
PICKLED = ("pytorch_model.bin.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class Stored:
    """A tensor on disk: where its bytes lie, or the tensor itself where a pickle file is mapped."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0  # bytes from the beginning of the file
    mapped: Tensor | None = None

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor, in `dtype` if given: then it is converted piece by piece and never whole in both."""
        if self.mapped is not None:
            return self.mapped if dtype is None else self.mapped.to(dtype)
        elements = math.prod(self.shape)
        if dtype in (None, self.dtype):
            return self._piece(0, elements).reshape(self.shape)
        converted = torch.empty(elements, dtype=dtype)
        for start in range(0, elements, PIECE):
            count = min(PIECE, elements - start)
            converted[start : start + count] = self._piece(start, count)
        return converted.reshape(self.shape)

    def _piece(self, start: int, count: int) -> Tensor:
        size = self.dtype.itemsize
        raw = np.fromfile(self.path, np.uint8, count * size, offset=self.start + start * size)
        return torch.from_numpy(raw).view(self.dtype)


def weights_of(folder: Path, name: str, *, allow_pickle: bool) -> dict[str, Stored]:
    """List the tensors of a checkpoint by name; nothing is read but the headers of its files.

    Raises Unusable if a file is missing, cut short or quantized, or if there are only pickles and they were not
    allowed.
    """
    files = _files(folder, READABLE)
    if files:
        return {key: stored for file in files for key, stored in _header(file, name).items()}
    pickles = _files(folder, PICKLED) if allow_pickle else []
    if not pickles:
        has_some = any((folder / file).exists() for file in PICKLED)
        raise Unusable(
            f"{name} holds {'only pickled weights, which can run code' if has_some else 'no model.safetensors'}: "
            "convert it, or say model.allow_pickle=true to have its pytorch_model.bin read as tensors alone"
        )
    return {key: stored for file in pickles for key, stored in _unpickled(file, name).items()}


def write(path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, tensor_of: Callable[[str], Tensor]) -> None:
    """Write a safetensors file; `tensor_of` is called for each name in turn and its result dropped once written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data to 8 bytes
    waiting = path.with_suffix(".tmp")
    with waiting.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = tensor_of(name).to(dtype).contiguous()
            if tensor.shape != shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}")
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    waiting.rename(path)


def _files(folder: Path, names: tuple[str, str]) -> list[Path]:
    """Return the files of an index, or the single file, or none.

    Raises Unusable if the index names a file that is not there.
    """
    index, single = (folder / name for name in names)
    if index.is_file():
        files = [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise Unusable(f"{folder} lacks {missing[0]}, which its {index.name} names")
        return files
    return [single] if single.is_file() else []


def _header(path: Path, name: str) -> dict[str, Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise Unusable(f"{name}: {path.name} is damaged or cut short: fetch it again")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise Unusable(f"{name}: {path.name} is damaged: fetch it again") from None
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size:
        raise Unusable(f"{name}: {path.name} has {size} bytes, not {end}: it was cut short, fetch it again")
    return dict(_entries(header, path, name, 8 + length))


def _entries(header: dict[str, Any], path: Path, name: str, base: int) -> Iterator[tuple[str, Stored]]:
    for key, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise Unusable(f"{name}: {key} is stored as {entry['dtype']}: take the checkpoint before quantization")
        yield key, Stored(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), base + entry["data_offsets"][0])


def _unpickled(path: Path, name: str) -> dict[str, Stored]:
    """Read a pickle as tensors and containers alone, which runs no code of its author."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as problem:  # torch raises many kinds for a damaged or unsafe file
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise Unusable(f"{name}: {path.name} cannot be read as tensors alone: {reason}") from None
    tensors = {key: tensor for key, tensor in held.items() if isinstance(tensor, Tensor)}
    return {key: Stored(path, tensor.dtype, tuple(tensor.shape), 0, tensor) for key, tensor in tensors.items()}
