"""What a picture goes through before the tower, as the exported processor would have it.

Sizes follow transformers' CLIP and SigLIP processors: `crop` resizes the shorter edge and keeps the centre, `pad`
first makes the picture square with a border of the mean colour. Resizing is torch's antialiased bicubic on uint8,
which is what the torchvision backend of those processors runs.
"""

import io
import json
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vlm.config import Geometry
from vlm.data.jpeg import jpeg_colours
from vlm.data.pictures import to_rgb
from vlm.errors import Unusable

WIDE = 8192  # pixels: a longer picture is never held as the whole square that it is padded to


@dataclass(frozen=True)
class Preprocessing:
    """What a picture goes through before the tower; kept in the assembled model's processor."""

    size: int  # pixels of each edge
    mean: tuple[float, float, float]  # of 0..1 colours
    std: tuple[float, float, float]
    geometry: Geometry

    @classmethod
    def load(cls, model: Path) -> "Preprocessing":
        """Read it from a model folder's processor_config.json, or the preprocessor_config.json of older folders.

        Raises Unusable if it does what neither `crop` nor `pad` is.
        """
        file = model / "processor_config.json"
        config = json.loads(file.read_text()).get("image_processor") if file.is_file() else None
        if config is None:
            file = model / "preprocessor_config.json"
            if not file.is_file():
                raise Unusable(f"{model} holds no processor_config.json that says what a picture goes through")
            config = json.loads(file.read_text())
        if "crop_size" not in config or not (config.get("do_pad") or config.get("do_center_crop")):
            raise Unusable(f"{file}: pictures are neither cropped nor padded to a square, which is not supported")
        return cls(
            size=_height(config["crop_size"]),
            mean=tuple(config["image_mean"]),
            std=tuple(config["image_std"]),
            geometry=Geometry.pad if config.get("do_pad") else Geometry.crop,
        )


def _height(size: int | dict[str, int]) -> int:
    """Return the edge of a square, which older configs write as a number."""
    return size if isinstance(size, int) else size["height"]


def decode(data: bytes) -> Tensor:
    """Return the stored picture's colours, uint8 (3, H, W), the three of a pixel side by side in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = Image.open(io.BytesIO(data))
        colours = jpeg_colours(picture, data)
        if colours is None:
            colours = np.array(to_rgb(picture))
    return torch.from_numpy(colours).permute(2, 0, 1)


def prepare(colours: Tensor, how: Preprocessing) -> Tensor:
    """Return a picture as the tower's input before normalisation, uint8 (3, S, S), from uint8 (3, H, W)."""
    if how.geometry is Geometry.pad:
        return _prepare_padded(colours, how)
    height, width = colours.shape[1:]
    short = min(height, width)
    resized = _resize(colours, height * how.size // short, width * how.size // short)
    top, left = ((edge - how.size) // 2 for edge in resized.shape[1:])
    return _planes(resized[:, top : top + how.size, left : left + how.size])


def normalise(pixels: Tensor, how: Preprocessing, dtype: torch.dtype) -> Tensor:
    """Return uint8 (N, 3, S, S) as the tower's input, in `dtype`: (x / 255 - mean) / std for each colour."""
    mean, std = (_of_colours(each, pixels.device) for each in (how.mean, how.std))
    return pixels.float().div_(255).sub_(mean).div_(std).to(dtype)  # in place: fresh memory takes as long as the sums


@lru_cache  # a GPU is sent them once: sending makes the CPU wait
def _of_colours(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def _prepare_padded(colours: Tensor, how: Preprocessing) -> Tensor:
    height, width = colours.shape[1:]
    edge = max(height, width)
    if edge <= WIDE or height == width:
        return _planes(_resize(_pad(colours, edge, edge, how.mean), how.size, how.size))
    # The long edge first: within a grey level of the same, where the whole square would take gigabytes.
    if width > height:
        padded = _pad(_resize(colours, height, how.size), edge, how.size, how.mean)
    else:
        padded = _pad(_resize(colours, how.size, width), how.size, edge, how.mean)
    return _planes(_resize(padded, how.size, how.size))


def _pad(colours: Tensor, height: int, width: int, mean: tuple[float, float, float]) -> Tensor:
    """Return the picture in the middle of a border of the mean colour, (3, height, width)."""
    _, own_height, own_width = colours.shape
    if (own_height, own_width) == (height, width):
        return colours
    border = torch.tensor([int(value * 255) for value in mean], dtype=torch.uint8)
    row = border.repeat(1, width, 1)  # which is then copied whole: three bytes at a time take four times as long
    padded = row.expand(height, width, 3).contiguous().permute(2, 0, 1)
    top, left = (height - own_height) // 2, (width - own_width) // 2
    padded[:, top : top + own_height, left : left + own_width] = colours
    return padded


def _resize(colours: Tensor, height: int, width: int) -> Tensor:
    if colours.shape[1:] == (height, width):
        return colours
    # The strides of a batch whose colours lie side by side in a pixel: so torch resizes them without sorting them first.
    batch = colours.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    return interpolate(batch, (height, width), mode="bicubic", antialias=True)[0]


def _planes(colours: Tensor) -> Tensor:
    """Return uint8 (3, S, S) with one colour after the other in memory; numpy is faster at it than `contiguous`."""
    return torch.from_numpy(np.ascontiguousarray(colours.numpy()))
