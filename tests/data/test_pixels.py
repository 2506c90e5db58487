import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from transformers import LlavaImageProcessorPil

from vlm.config import Geometry
from vlm.data.pixels import Preprocessing, decode, inspect, normalise, prepare
from vlm.data.sources import Reject

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PLENTY = 10**6  # pixels


def saved(picture: Image.Image, form: str, **settings) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **settings)
    return out.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    """A picture without hard edges but for one, so that a shift by a pixel is seen."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    colours = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), 127 + 100 * np.sin(x / 3 + y / 5)])
    colours[:, height // 3 : height // 3 * 2, width // 4 : width // 2] = 250
    return Image.fromarray(colours.transpose(1, 2, 0).astype(np.uint8))


def how(geometry: Geometry, size: int = 16) -> Preprocessing:
    return Preprocessing(size, MEAN, STD, geometry)


def processor(geometry: Geometry, size: int = 16, **settings) -> LlavaImageProcessorPil:
    edges = {"height": size, "width": size}
    return LlavaImageProcessorPil(
        size={"shortest_edge": size}, crop_size=edges, do_pad=geometry is Geometry.pad, **settings
    )


def expected(picture: Image.Image, geometry: Geometry, size: int = 16) -> np.ndarray:
    """Return the grey levels that transformers' own processor makes, before scaling and normalisation."""
    own = processor(geometry, size, do_rescale=False, do_normalize=False, image_mean=list(MEAN))
    return np.asarray(own(picture, return_tensors="np")["pixel_values"][0], np.int64)


def code_of(data: bytes, max_pixels: int = PLENTY) -> str:
    with pytest.raises(Reject) as reject:
        inspect(data, max_pixels)
    return reject.value.code


@pytest.mark.parametrize(("form", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_bytes_of_common_formats_are_kept_as_they_are(form, extension):
    data = saved(smooth(20, 14), form)
    picture = inspect(data, PLENTY)
    assert (picture.data, picture.extension, picture.width, picture.height) == (data, extension, 20, 14)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_stored_as_png_without_loss(form):
    data = saved(smooth(20, 14), form)
    picture = inspect(data, PLENTY)
    assert picture.extension == "png"
    assert Image.open(io.BytesIO(picture.data)).format == "PNG"
    assert decode(picture.data).equal(decode(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_picture_is_rejected(form, share):
    data = saved(smooth(60, 60), form)
    assert code_of(data[: int(len(data) * share)]) in {"corrupt", "not_an_image"}


def test_what_is_no_picture_is_rejected():
    assert code_of(b"") == "empty"
    assert code_of(b"<html>404 not found</html>") == "not_an_image"
    assert code_of(b"\xff\xd8\xff") == "not_an_image"


@given(data=st.binary(max_size=200), head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF"]))
@settings(max_examples=60)
def test_any_bytes_are_a_picture_or_rejected(data, head):
    try:
        assert inspect(head + data, PLENTY).width > 0
    except Reject as reject:
        assert reject.code in {"empty", "not_an_image", "too_large", "corrupt"}


@pytest.mark.parametrize("edge", [15_000, 60_000])
def test_a_bomb_is_rejected_before_it_is_decoded(monkeypatch, edge):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda picture: loaded.append(picture.size))
    assert code_of(bomb, 178_956_970) == "too_large"
    assert not loaded


def test_the_limit_is_the_largest_picture_allowed():
    data = saved(smooth(20, 14), "PNG")
    assert inspect(data, 280).width == 20
    assert code_of(data, 279) == "too_large"


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    half.putpixel((0, 0), (200, 0, 0, 0))
    half.putpixel((1, 0), (200, 0, 0, 128))
    colours = decode(inspect(saved(half, "PNG"), PLENTY).data)
    assert colours[:, 0, 0].tolist() == [255, 255, 255]
    assert colours[:, 0, 1].tolist() == pytest.approx([227, 127, 127], abs=1)
    assert colours[:, 3, 3].tolist() == [200, 0, 0]


def test_transparency_of_a_palette_and_of_grey_is_laid_over_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode(saved(palette, "PNG", transparency=0))[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]
    grey = Image.new("LA", (1, 1), (80, 0))
    assert decode(saved(grey, "PNG")).flatten().tolist() == [255, 255, 255]


def test_sixteen_bit_grey_keeps_its_brightness():
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert decode(saved(Image.fromarray(levels), "PNG"))[0, 0].tolist() == pytest.approx([0, 1, 127, 255], abs=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "I;16", "RGBA"])
def test_any_mode_becomes_three_colours(mode):
    form = "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"
    grey = Image.new("L", (8, 8), 255)
    white = Image.fromarray(np.full((8, 8), 65535, np.uint16)) if mode == "I;16" else grey.convert("RGB").convert(mode)
    colours = decode(inspect(saved(white, form), PLENTY).data)
    assert colours.shape == (3, 8, 8)
    assert colours.min() >= 253


def test_a_rotated_photograph_is_put_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    upright = smooth(20, 14)
    data = saved(upright, "PNG", exif=exif)
    picture = inspect(data, PLENTY)
    assert (picture.width, picture.height) == (14, 20)
    assert decode(picture.data).numpy().transpose(1, 2, 0).tolist() == np.rot90(np.asarray(upright), -1).tolist()


def test_broken_exif_does_not_cost_the_picture():
    data = saved(smooth(20, 14), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert inspect(data, PLENTY).width == 20


SIZES = [(16, 16), (32, 32), (17, 16), (16, 19), (33, 21), (37, 91), (64, 48), (101, 7), (5, 9), (1, 40), (3, 3)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("geometry", Geometry)
def test_a_prepared_picture_is_that_of_the_exported_processor(geometry, size):
    picture = smooth(*size)
    ours = prepare(decode(saved(picture, "PNG")), how(geometry)).numpy().astype(np.int64)
    assert ours.shape == (3, 16, 16)
    assert np.abs(ours - expected(picture, geometry)).max() <= 2


@pytest.mark.parametrize(
    ("geometry", "size"),
    [(Geometry.crop, (16 + extra, 16)) for extra in range(9)]
    + [(Geometry.crop, (16, 16 + extra)) for extra in range(1, 9)]
    + [(Geometry.pad, (16, height)) for height in range(1, 17)]
    + [(Geometry.pad, (width, 16)) for width in range(1, 16)],
)
def test_without_resizing_it_is_exactly_that_of_the_exported_processor(geometry, size):
    picture = smooth(*size)
    assert np.array_equal(prepare(decode(saved(picture, "PNG")), how(geometry)), expected(picture, geometry))


@given(width=st.integers(1, 80), height=st.integers(1, 80), geometry=st.sampled_from(Geometry))
@settings(max_examples=40)
def test_any_size_becomes_a_square_like_the_exported_processors(width, height, geometry):
    picture = smooth(width, height)
    ours = prepare(decode(saved(picture, "PNG")), how(geometry)).numpy().astype(np.int64)
    differences = np.abs(ours - expected(picture, geometry))
    assert np.quantile(differences, 0.98) <= 2  # a shift by a pixel changes nearly all
    assert differences.max() <= 16  # single pixels beside a hard edge: Pillow rounds between its two passes


def test_normalised_colours_are_those_of_the_exported_processor():
    picture = smooth(16, 16)
    ours = normalise(decode(saved(picture, "PNG")).unsqueeze(0), how(Geometry.crop), torch.float32)
    own = processor(Geometry.crop, image_mean=list(MEAN), image_std=list(STD))
    assert torch.allclose(ours, own(picture, return_tensors="pt")["pixel_values"], atol=1e-6)
    assert normalise(torch.zeros(0, 3, 16, 16).byte(), how(Geometry.pad), torch.bfloat16).dtype is torch.bfloat16


def test_the_preprocessing_is_read_from_the_assembled_model(tiny_model):
    loaded = Preprocessing.load(tiny_model)
    assert loaded.size == 16
    assert loaded.geometry is Geometry.pad
    assert loaded.mean == pytest.approx(MEAN)
    assert loaded.std == pytest.approx(STD)
