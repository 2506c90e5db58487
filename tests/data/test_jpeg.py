import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from simplejpeg import encode_jpeg

from vlm.data import jpeg
from vlm.data.jpeg import jpeg_colours
from vlm.data.pictures import to_rgb
from vlm.data.pixels import decode

ORIENTATION = 0x0112


def saved(picture: Image.Image, form: str = "JPEG", **settings) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **settings)
    return out.getvalue()


def opened(data: bytes) -> np.ndarray | None:
    return jpeg_colours(Image.open(io.BytesIO(data)), data)


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(to_rgb(Image.open(io.BytesIO(data))))


def outcome(read, data: bytes) -> tuple:
    """Return the colours with their shape, or the kind and the text of the error without the addresses in it."""
    try:
        colours = read(data)
    except Exception as problem:  # noqa: BLE001 - Pillow raises many kinds
        return type(problem), re.sub(r" at 0x\w+", "", str(problem))
    return colours.shape, colours.tobytes()


def as_rows(data: bytes) -> np.ndarray:
    return decode(data).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 9), (8, 8), (17, 15), (33, 64), (95, 71)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_colours_are_those_of_pillow_bit_for_bit(smooth, size, progressive, subsampling):
    for quality in (1, 30, 75, 95, 100):
        data = saved(smooth(*size), quality=quality, progressive=progressive, subsampling=subsampling)
        assert np.array_equal(opened(data), by_pillow(data))
        assert np.array_equal(as_rows(data), by_pillow(data))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_subsamplings_that_pillow_does_not_write_are_decoded_as_it_reads_them(smooth, subsampling):
    for size in ((32, 32), (45, 29)):
        data = encode_jpeg(np.array(smooth(*size)), colorsubsampling=subsampling)
        assert np.array_equal(opened(data), by_pillow(data))


@pytest.mark.parametrize(
    "settings",
    [
        {"restart_marker_blocks": 1},
        {"restart_marker_rows": 1, "progressive": True},
        {"icc_profile": b"profile" * 20_000},
        {"comment": b"taken on a Sunday"},
        {"optimize": True},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_other_ways_to_write_a_jpeg_are_decoded_as_pillow_does(smooth, settings):
    data = saved(smooth(61, 43), **settings)
    assert np.array_equal(opened(data), by_pillow(data))


def test_grey_becomes_three_colours(smooth):
    data = saved(smooth(30, 21).convert("L"))
    assert opened(data).shape == (21, 30, 3)
    assert np.array_equal(opened(data), by_pillow(data))


@pytest.mark.parametrize("orientation", range(10))
def test_a_picture_that_is_to_be_turned_is_left_to_pillow(smooth, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(smooth(20, 14), exif=exif)
    assert (opened(data) is None) == (2 <= orientation <= 8)
    assert np.array_equal(as_rows(data), by_pillow(data))


def test_other_formats_and_cmyk_are_left_to_pillow(smooth):
    stereo = {"save_all": True, "append_images": [smooth(20, 14)]}
    for data in (
        saved(smooth(20, 14), "PNG"),
        saved(smooth(20, 14), "WEBP"),
        saved(smooth(20, 14), "MPO", **stereo),
        saved(smooth(20, 14).convert("CMYK")),
    ):
        assert opened(data) is None
        assert np.array_equal(as_rows(data), by_pillow(data))


def test_a_plain_jpeg_is_not_decoded_twice(smooth, monkeypatch):
    data = saved(smooth(20, 14))
    monkeypatch.setattr("vlm.data.pixels.to_rgb", lambda picture: pytest.fail("Pillow decoded it as well"))
    assert decode(data).shape == (3, 14, 20)


def test_colours_of_another_size_than_pillow_foresaw_are_left_to_it(smooth, monkeypatch):
    data = saved(smooth(20, 14))
    monkeypatch.setattr(jpeg, "decode_jpeg", lambda data, strict: np.zeros((14, 21, 3), np.uint8))
    assert opened(data) is None


@pytest.mark.parametrize(
    "settings", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_blocks": 4}], ids=str
)
def test_a_damaged_jpeg_gives_the_colours_or_the_error_that_pillow_gives(encoded, settings):
    whole = encoded(3, (96, 72), "JPEG", **settings)
    rng = np.random.default_rng(0)
    found = Counter()
    for number in range(400):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        if number % 4 == 0:
            del data[at:]
        elif number % 4 == 1:
            del data[at : at + int(rng.integers(1, 20))]
        else:
            data[at] ^= int(rng.integers(1, 256))
        expected = outcome(by_pillow, bytes(data))
        assert outcome(as_rows, bytes(data)) == expected
        found["error" if isinstance(expected[0], type) else "colours"] += 1
    assert min(found["error"], found["colours"]) > 50


def test_a_jpeg_without_its_end_is_judged_by_pillow(smooth):
    data = saved(smooth(20, 14))
    for cut in range(1, 6):
        assert opened(data[:-cut]) is None
        assert outcome(as_rows, data[:-cut]) == outcome(by_pillow, data[:-cut])
    assert np.array_equal(as_rows(data + b"appended by a camera"), by_pillow(data))
