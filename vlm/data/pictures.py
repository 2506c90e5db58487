"""Picture files: checked once when sharding, and put upright in RGB wherever they are read.

Nothing here knows what a tower wants; that is in pixels.py.
"""

import functools
import importlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlm.config import Stored as StoredAs
from vlm.data.samples import Reject

# Formats that are told by their first bytes; Pillow knows others that run programs (EPS) or accept any bytes (TGA).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "PCX")
MODULES = (
    "Jpeg",
    "Mpo",
    "Png",
    "WebP",
    "Gif",
    "Bmp",
    "Tiff",
    "Ppm",
    "Ico",
    "Jpeg2K",
    "Avif",
    "Pcx",
)  # Pillow's, for them
JPEGS = ("JPEG", "MPO")
STORED = {"PNG": "png", "WEBP": "webp"}  # formats whose bytes are kept as they are, besides JPEG
JPEG_BLOCK = 8  # pixels: at an eighth of its size a block of coefficients is one pixel
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}  # ISO/IEC 23008-12, annex B
MAX_ASPECT = 200  # of the long to the short edge: beyond it nothing is left of a resized picture but memory
MAX_BYTES = 256 * 2**20  # of a picture's file: twice what the largest photographs take
WEBP_EDGE = 16383  # pixels: the format holds no longer ones
BAND = 2**22  # pixels that are laid over white at once
ORIENTATION = 0x0112  # EXIF tag; its values and how to undo them: EXIF 2.3, 4.6.4 A
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = {5, 6, 7, 8}  # of these, the ones that lie on their side

for module in MODULES:  # here, or every worker process would import them for itself
    importlib.import_module(f"PIL.{module}ImagePlugin")


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded in full and found good."""

    data: bytes
    extension: str  # jpg | png | webp
    width: int
    height: int


def inspect(data: bytes, max_pixels: int, max_bytes: int = MAX_BYTES, others: StoredAs = StoredAs.png) -> Picture:
    """Decode a picture in full; keep its bytes if they are JPEG, PNG or WebP, else store it as `others`, losslessly.

    Of a picture with several frames the first counts. Raises Reject: empty, not_an_image, unsupported, too_large or
    aspect (both found before decoding), or corrupt.
    """
    if not data:
        raise Reject("empty", "the file has no bytes")
    if len(data) > max_bytes:
        raise Reject("too_large", f"{len(data)} bytes, more than {max_bytes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size warning: max_pixels decides
        picture = _open(data)
        _check_size(picture, max_pixels)
        try:
            if picture.format in JPEGS:
                return Picture(data, "jpg", *_decoded_size(picture))
            rgb = to_rgb(picture)
        except Exception as problem:  # Pillow raises many kinds on hostile bytes
            raise Reject("corrupt", _first_line(problem)) from None
    _check_size(rgb, max_pixels)  # an icon may hold more than its header says
    if picture.format in STORED:
        return Picture(data, STORED[picture.format], *rgb.size)
    stored = io.BytesIO()
    if others is StoredAs.webp and max(rgb.size) <= WEBP_EDGE:
        rgb.save(stored, "WEBP", lossless=True)
        return Picture(stored.getvalue(), "webp", *rgb.size)
    rgb.save(stored, "PNG")
    return Picture(stored.getvalue(), "png", *rgb.size)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_readable())
    except UnidentifiedImageError:  # its message holds a memory address, which would differ between runs
        if HEIF_BRANDS & {data[i : i + 4] for i in range(8, 64, 4)}:
            raise Reject("unsupported", "a HEIF picture: convert it to JPEG") from None
        name = _named_by(data)
        if name is None:
            raise Reject("not_an_image", f"begins with {data[:12]!r}") from None
        raise Reject("corrupt", f"begins like {name}, but cannot be read") from None
    except Exception as problem:
        line = _first_line(problem)
        is_bomb = isinstance(problem, Image.DecompressionBombError) or "too large" in line
        raise Reject("too_large" if is_bomb else "corrupt", line) from None


def _decoded_size(picture: Image.Image) -> tuple[int, int]:
    """Return the size of an upright JPEG after all its bytes were decoded, as a grey miniature: what can fail is the
    reading of its coefficients, so no time goes into pixels that nobody looks at.
    """
    size = picture.size
    picture.draft("L", tuple(max(1, edge // JPEG_BLOCK) for edge in size))  # a CMYK picture keeps its colours
    picture.load()
    return size[::-1] if orientation_of(picture) in TURNED else size


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise Reject("too_large", f"{width}x{height} pixels, more than {max_pixels}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Reject("aspect", f"{width}x{height} pixels, more than {MAX_ASPECT} to 1")


@functools.cache
def _readable() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow reads."""
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _named_by(data: bytes) -> str | None:
    """Return the format that the first bytes promise, if any."""
    accepts = {name: Image.OPEN[name][1] for name in _readable()}
    head = data[:16].ljust(16, b"\0")  # some read further than a short file reaches
    return next((name for name, accept in accepts.items() if accept is not None and accept(head)), None)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture upright and in RGB; transparency is laid over white, 16-bit grey is scaled to 8."""
    picture = _upright(picture)
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bit(picture)
    if picture.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in picture.info:
        return _over_white(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def orientation_of(picture: Image.Image) -> object:
    """Return what a picture's EXIF says of its orientation, if anything; a PNG has it once it is loaded."""
    if picture.format in JPEGS and not {"exif", "xmp"} & picture.info.keys():
        return None  # most: asking Pillow takes longer than looking here
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:  # broken EXIF says nothing of the pixels
        return None


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()
    orientation = orientation_of(picture)
    return picture.transpose(UNDO[orientation]) if orientation in UNDO else picture


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Return grey of 16 or 32 bits, or of floats (of 0..1, 0..255 or 0..65535), as grey of 8 bits."""
    levels = np.nan_to_num(np.asarray(picture))
    highest = levels.max(initial=0)
    if picture.mode == "F":
        scale = 255 if highest <= 1 else 1 if highest <= 255 else 1 / 257
        grey = (levels * np.float32(scale)).clip(0, 255).astype(np.uint8)
    else:
        grey = (levels.clip(0, 65535) // 257 if highest > 255 else levels.clip(0, 255)).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[levels == transparent] = 255
    return Image.fromarray(grey)


def _over_white(picture: Image.Image) -> Image.Image:
    """Return the picture on white, RGB, without holding more than the two of them."""
    transparent = picture.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:  # of 16 bits, while Pillow reads the upper 8
        picture.info["transparency"] = tuple(value >> 8 for value in transparent)
    width, height = picture.size
    rows = max(1, BAND // width)
    on_white = Image.new("RGB", picture.size)
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        on_white.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return on_white


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
