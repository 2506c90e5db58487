"""Pictures: checked once when sharding, decoded for training as the exported processor would.

Sizes follow transformers' CLIP and SigLIP processors: `crop` resizes the shorter edge and keeps the centre, `pad`
first makes the picture square with a border of the mean colour. Resizing is torch's antialiased bicubic on uint8,
which is what the torchvision backend of those processors runs.
"""

import functools
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from vlm.config import Geometry
from vlm.data.sources import Reject

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF", "PCX")
MAX_ASPECT = 200  # of the long to the short edge: beyond it nothing is left of a resized picture but memory
STORED = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats whose bytes are kept as they are


@dataclass(frozen=True)
class Preprocessing:
    """What a picture goes through before the tower; kept in the assembled model's processor."""

    size: int  # pixels of each edge
    mean: tuple[float, float, float]  # of 0..1 colours
    std: tuple[float, float, float]
    geometry: Geometry

    @classmethod
    def load(cls, model: Path) -> "Preprocessing":
        """Read it from a model folder's processor_config.json."""
        config = json.loads((model / "processor_config.json").read_text())["image_processor"]
        return cls(
            size=config["crop_size"]["height"],
            mean=tuple(config["image_mean"]),
            std=tuple(config["image_std"]),
            geometry=Geometry.pad if config.get("do_pad") else Geometry.crop,
        )


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded in full and found good."""

    data: bytes
    extension: str  # jpg | png | webp
    width: int
    height: int


def inspect(data: bytes, max_pixels: int) -> Picture:
    """Decode a picture in full; keep its bytes if they are JPEG, PNG or WebP, else store it as PNG.

    Raises Reject: empty, not_an_image, too_large or aspect (found before decoding), or corrupt.
    """
    if not data:
        raise Reject("empty", "the file has no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size warning: max_pixels decides
        try:
            picture = Image.open(io.BytesIO(data), formats=_readable())
        except Image.DecompressionBombError as problem:  # Pillow's own limit, 357,913,940 pixels
            raise Reject("too_large", _first_line(problem)) from None
        except Exception as problem:  # Pillow raises many kinds on hostile bytes
            raise Reject("not_an_image", _first_line(problem)) from None
        width, height = picture.size
        if width * height > max_pixels:
            raise Reject("too_large", f"{width}x{height} pixels, more than {max_pixels}")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise Reject("aspect", f"{width}x{height} pixels, more than {MAX_ASPECT} to 1")
        try:
            rgb = to_rgb(picture)
        except Exception as problem:
            raise Reject("corrupt", _first_line(problem)) from None
    if picture.format in STORED:
        return Picture(data, STORED[picture.format], *rgb.size)
    stored = io.BytesIO()
    rgb.save(stored, "PNG")
    return Picture(stored.getvalue(), "png", *rgb.size)


@functools.cache
def _readable() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow reads; others it knows (EPS, PDF …) run programs or are no photographs."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture upright and in RGB; transparency is laid over white, 16-bit grey is scaled to 8."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        grey = np.asarray(picture, np.float64)
        scale = 255 / 65535 if grey.max(initial=0) > 255 else 1
        picture = Image.fromarray((grey * scale).clip(0, 255).astype(np.uint8))
    if picture.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in picture.info:
        overlay = picture.convert("RGBA")
        white = Image.new("RGBA", overlay.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, overlay)
    return picture.convert("RGB")


def decode(data: bytes) -> Tensor:
    """Return the stored picture's colours, uint8 (3, H, W)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        colours = np.array(to_rgb(Image.open(io.BytesIO(data))))
    return torch.from_numpy(colours).permute(2, 0, 1)


def prepare(colours: Tensor, how: Preprocessing) -> Tensor:
    """Return a picture as the tower's input before normalisation, uint8 (3, S, S), from uint8 (3, H, W)."""
    if how.geometry is Geometry.pad:
        colours = _pad_to_square(colours, how.mean)
    height, width = colours.shape[1:]
    short = min(height, width)
    resized = _resize(colours, height * how.size // short, width * how.size // short)
    top, left = ((edge - how.size) // 2 for edge in resized.shape[1:])
    return resized[:, top : top + how.size, left : left + how.size].contiguous()


def normalise(pixels: Tensor, how: Preprocessing, dtype: torch.dtype) -> Tensor:
    """Return uint8 (N, 3, S, S) as the tower's input, in `dtype`: (x / 255 - mean) / std for each colour."""
    mean = torch.tensor(how.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(how.std, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels.float() / 255 - mean) / std).to(dtype)


def _pad_to_square(colours: Tensor, mean: tuple[float, float, float]) -> Tensor:
    _, height, width = colours.shape
    if height == width:
        return colours
    edge = max(height, width)
    border = torch.tensor([int(value * 255) for value in mean], dtype=torch.uint8)
    square = border.view(3, 1, 1).repeat(1, edge, edge)
    top, left = (edge - height) // 2, (edge - width) // 2
    square[:, top : top + height, left : left + width] = colours
    return square


def _resize(colours: Tensor, height: int, width: int) -> Tensor:
    if colours.shape[1:] == (height, width):
        return colours
    return interpolate(colours.unsqueeze(0), (height, width), mode="bicubic", antialias=True)[0]


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
