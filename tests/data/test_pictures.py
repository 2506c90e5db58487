import io
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from vlm.config import Stored
from vlm.data import pictures
from vlm.data.pictures import inspect
from vlm.data.pixels import decode
from vlm.data.samples import Reject

PLENTY = 10**6  # pixels


def saved(picture: Image.Image, form: str, **settings) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **settings)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, levels: bytes, transparent: bytes | None = None) -> bytes:
    """Write a PNG of one row, or a false one of more, by hand: `colour` 0 is grey, 2 is RGB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    key = b"" if transparent is None else chunk(b"tRNS", transparent)
    rows = chunk(b"IDAT", zlib.compress(b"\0" + levels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + rows + chunk(b"IEND", b"")


def code_of(data: bytes, max_pixels: int = PLENTY) -> str:
    with pytest.raises(Reject) as reject:
        inspect(data, max_pixels)
    return reject.value.code


@pytest.mark.parametrize(("form", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_bytes_of_common_formats_are_kept_as_they_are(smooth, form, extension):
    data = saved(smooth(20, 14), form)
    picture = inspect(data, PLENTY)
    assert (picture.data, picture.extension, picture.width, picture.height) == (data, extension, 20, 14)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_stored_as_png_without_loss(smooth, form):
    data = saved(smooth(20, 14), form)
    picture = inspect(data, PLENTY)
    assert picture.extension == "png"
    assert Image.open(io.BytesIO(picture.data)).format == "PNG"
    assert decode(picture.data).equal(decode(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_picture_is_rejected(smooth, form, share):
    data = saved(smooth(60, 60), form)
    assert code_of(data[: int(len(data) * share)]) in {"corrupt", "not_an_image"}


def test_what_is_no_picture_is_rejected():
    assert code_of(b"") == "empty"
    assert code_of(b"<html>404 not found</html>") == "not_an_image"
    assert code_of(b"BMs are short for ballistic missiles") == "corrupt"
    assert code_of(b"\xff\xd8\xff") == "corrupt"


def test_a_reject_reads_the_same_in_every_run():
    for data in (b"<html>404 not found</html>", b"\x89PNG\r\n\x1a\n no chunk"):
        with pytest.raises(Reject) as reject:
            inspect(data, PLENTY)
        assert " at 0x" not in reject.value.detail


def test_a_heif_photograph_is_named_as_such():
    assert code_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99)) == "unsupported"


def test_a_large_file_is_rejected_before_it_is_opened(smooth, monkeypatch):
    data = saved(smooth(20, 14), "PNG")
    assert inspect(data, PLENTY, len(data)).width == 20
    monkeypatch.setattr(Image, "open", lambda *args, **settings: pytest.fail("opened"))
    with pytest.raises(Reject, match=f"too_large: {len(data)} bytes"):
        inspect(data, PLENTY, len(data) - 1)


def test_a_bomb_of_text_inside_a_picture_is_rejected(smooth):
    text = PngInfo()
    text.add_text("comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    assert code_of(saved(smooth(20, 14), "PNG", pnginfo=text)) == "too_large"


def test_an_icon_larger_than_its_header_says_is_rejected(smooth):
    data = bytearray(saved(smooth(64, 64), "ICO", sizes=[(64, 64)]))
    assert inspect(bytes(data), 64 * 64).width == 64
    data[6:8] = 16, 16
    assert code_of(bytes(data), 16 * 16) == "too_large"


def test_of_a_stereo_photograph_the_first_picture_counts_and_its_bytes_are_kept(smooth):
    data = saved(smooth(20, 14), "MPO", save_all=True, append_images=[Image.new("RGB", (20, 14))])
    picture = inspect(data, PLENTY)
    assert (picture.data, picture.extension) == (data, "jpg")
    assert decode(data).float().mean() > 50


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(form):
    data = saved(Image.new("RGB", (8, 8), "white"), form, save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert decode(inspect(data, PLENTY).data).min() > 250


@given(data=st.binary(max_size=200), head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF"]))
@settings(max_examples=60)
def test_any_bytes_are_a_picture_or_rejected(data, head):
    try:
        assert inspect(head + data, PLENTY).width > 0
    except Reject as reject:
        assert reject.code in {"empty", "not_an_image", "too_large", "corrupt"}


@pytest.mark.parametrize("edge", [15_000, 60_000])
def test_a_bomb_is_rejected_before_it_is_decoded(monkeypatch, edge):
    bomb = png(edge, edge, 8, 2, bytes(99))
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda picture: loaded.append(picture.size))
    assert code_of(bomb, 178_956_970) == "too_large"
    assert not loaded


def test_the_limit_is_the_largest_picture_allowed(smooth):
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


def test_dark_sixteen_bit_grey_of_eight_bit_levels_is_kept():
    levels = np.array([[0, 10, 200, 255]], np.uint16)
    assert decode(saved(Image.fromarray(levels), "PNG"))[0, 0].tolist() == [0, 10, 200, 255]


def test_transparency_of_sixteen_bit_colours_is_laid_over_white():
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    grey = decode(png(4, 1, 16, 0, levels.astype(">u2").tobytes(), b"\x80\0"))
    assert grey[0, 0].tolist() == [0, 1, 255, 255]
    colours = np.array([[(0, 0x1234, 0x5678), (0, 0xAB00, 0)]], np.uint16)
    rgb = decode(png(2, 1, 16, 2, colours.astype(">u2").tobytes(), colours[0, 0].astype(">u2").tobytes()))
    assert rgb[:, 0].T.tolist() == [[255, 255, 255], [0, 0xAB, 0]]


def test_transparency_is_the_same_in_one_piece_and_in_bands(monkeypatch):
    levels = np.random.default_rng(0).integers(0, 256, (13, 7, 4), np.uint8)
    picture = Image.fromarray(levels)
    whole = Image.alpha_composite(Image.new("RGBA", (7, 13), "white"), picture).convert("RGB")
    monkeypatch.setattr(pictures, "BAND", 20)
    assert decode(saved(picture, "PNG")).permute(1, 2, 0).numpy().tolist() == np.asarray(whole).tolist()


@pytest.mark.parametrize("highest", [1.0, 255.0, 65535.0])
def test_grey_in_floats_keeps_its_brightness(highest):
    levels = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32) * np.float32(highest)
    assert decode(saved(Image.fromarray(levels), "TIFF"))[0, 0].tolist() == pytest.approx([0, 127, 255, 0], abs=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "I;16", "RGBA"])
def test_any_mode_becomes_three_colours(mode):
    form = "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"
    grey = Image.new("L", (8, 8), 255)
    white = Image.fromarray(np.full((8, 8), 65535, np.uint16)) if mode == "I;16" else grey.convert("RGB").convert(mode)
    colours = decode(inspect(saved(white, form), PLENTY).data)
    assert colours.shape == (3, 8, 8)
    assert colours.min() >= 253


def test_a_rotated_photograph_is_put_upright(smooth):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    upright = smooth(20, 14)
    data = saved(upright, "PNG", exif=exif)
    picture = inspect(data, PLENTY)
    assert (picture.width, picture.height) == (14, 20)
    assert decode(picture.data).numpy().transpose(1, 2, 0).tolist() == np.rot90(np.asarray(upright), -1).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF"])
def test_every_orientation_is_put_upright(smooth, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(smooth(20, 14), form, exif=exif)
    picture = inspect(data, PLENTY)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert (picture.height, picture.width) == upright.shape[:2]
    assert np.array_equal(decode(picture.data).permute(1, 2, 0), upright)


def test_broken_exif_does_not_cost_the_picture(smooth):
    data = saved(smooth(20, 14), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert inspect(data, PLENTY).width == 20


def test_other_formats_become_the_lossless_one_that_is_asked_for():
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).save(out, "BMP")
    for chosen in Stored:
        found = inspect(out.getvalue(), 10**6, others=chosen)
        assert found.extension == chosen.value
        assert (np.asarray(Image.open(io.BytesIO(found.data)).convert("RGB")) == colours).all()


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_found_corrupt_exactly_where_decoding_its_colours_fails(encoded, settings):
    whole = encoded(3, (96, 72), "JPEG", **settings)
    rng = np.random.default_rng(0)
    found = Counter()
    for number in range(300):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        if number % 3:
            data[at] ^= int(rng.integers(1, 256))
        else:
            del data[at:]
        found[is_decoded(bytes(data)), is_accepted(bytes(data))] += 1
    assert found[True, True] > 20
    assert found[False, False] > 20
    assert not found[True, False]
    assert not found[False, True]


def is_decoded(data: bytes) -> bool:
    try:
        decode(data)
    except Exception:  # noqa: BLE001 - Pillow raises many kinds
        return False
    return True


def is_accepted(data: bytes) -> bool:
    try:
        inspect(data, 10**6)
    except Reject as reason:
        return reason.code in {"too_large", "aspect"}  # a header that promises another size
    return True
