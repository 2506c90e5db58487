import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate
from transformers import LlavaImageProcessorPil

from vlm.config import Geometry
from vlm.data import pixels
from vlm.data.pixels import Preprocessing, decode, normalise, prepare

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


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


SIZES = [(16, 16), (32, 32), (17, 16), (16, 19), (33, 21), (37, 91), (64, 48), (101, 7), (5, 9), (1, 40), (3, 3)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("geometry", Geometry)
def test_a_prepared_picture_is_that_of_the_exported_processor(smooth, geometry, size):
    picture = smooth(*size)
    ours = prepare(decode(png(picture)), how(geometry)).numpy().astype(np.int64)
    assert ours.shape == (3, 16, 16)
    assert np.abs(ours - expected(picture, geometry)).max() <= 2


@pytest.mark.parametrize(
    ("geometry", "size"),
    [(Geometry.crop, (16 + extra, 16)) for extra in range(9)]
    + [(Geometry.crop, (16, 16 + extra)) for extra in range(1, 9)]
    + [(Geometry.pad, (16, height)) for height in range(1, 17)]
    + [(Geometry.pad, (width, 16)) for width in range(1, 16)],
)
def test_without_resizing_it_is_exactly_that_of_the_exported_processor(smooth, geometry, size):
    picture = smooth(*size)
    assert np.array_equal(prepare(decode(png(picture)), how(geometry)), expected(picture, geometry))


@given(width=st.integers(1, 80), height=st.integers(1, 80), geometry=st.sampled_from(Geometry))
@settings(max_examples=40)
def test_any_size_becomes_a_square_like_the_exported_processors(smooth, width, height, geometry):
    picture = smooth(width, height)
    ours = prepare(decode(png(picture)), how(geometry)).numpy().astype(np.int64)
    differences = np.abs(ours - expected(picture, geometry))
    assert np.quantile(differences, 0.98) <= 2  # a shift by a pixel changes nearly all
    assert differences.max() <= 16  # single pixels beside a hard edge: Pillow rounds between its two passes


@pytest.mark.parametrize("size", [(2000, 30), (30, 2000), (1000, 999)], ids=lambda size: "x".join(map(str, size)))
def test_a_long_picture_is_prepared_alike_without_its_whole_square(smooth, monkeypatch, size):
    colours = decode(png(smooth(*size)))
    whole = prepare(colours, how(Geometry.pad)).numpy().astype(np.int64)
    monkeypatch.setattr(pixels, "WIDE", 100)
    monkeypatch.setattr(pixels, "_pad", within(2_000_000, pixels._pad))
    assert np.abs(prepare(colours, how(Geometry.pad)).numpy() - whole).max() <= 1


def test_the_longest_picture_that_is_accepted_takes_no_gigabytes(monkeypatch):
    monkeypatch.setattr(pixels, "_pad", within(40_000_000, pixels._pad))
    for shape in ((3, 189, 37_800), (3, 37_800, 189)):
        assert prepare(torch.zeros(shape, dtype=torch.uint8), how(Geometry.pad, 336)).shape == (3, 336, 336)


def within(most: int, pad):
    """Return `pad`, but failing if it makes more than so many bytes."""

    def checked(colours, height, width, mean):
        assert 3 * height * width <= most
        return pad(colours, height, width, mean)

    return checked


@pytest.mark.parametrize("size", [(37, 91), (64, 48), (101, 7), (5, 9)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("geometry", Geometry)
def test_the_order_of_colours_in_memory_changes_no_bit_of_a_prepared_picture(smooth, geometry, size):
    side_by_side = decode(png(smooth(*size)))
    prepared = prepare(side_by_side, how(geometry))
    assert side_by_side.stride(0) == 1
    assert prepared.is_contiguous()
    assert prepared.equal(prepare(side_by_side.contiguous(), how(geometry)))
    if geometry is Geometry.crop:
        short = min(size)
        height, width = size[1] * 16 // short, size[0] * 16 // short
        whole = interpolate(side_by_side.contiguous()[None], (height, width), mode="bicubic", antialias=True)[0]
        top, left = (height - 16) // 2, (width - 16) // 2
        assert prepared.equal(whole[:, top : top + 16, left : left + 16])


def test_normalised_colours_are_those_of_the_exported_processor(smooth):
    picture = smooth(16, 16)
    colours = decode(png(picture)).unsqueeze(0)
    ours = normalise(colours, how(Geometry.crop), torch.float32)
    own = processor(Geometry.crop, image_mean=list(MEAN), image_std=list(STD))
    assert torch.allclose(ours, own(picture, return_tensors="pt")["pixel_values"], atol=1e-6)
    assert normalise(torch.zeros(0, 3, 16, 16).byte(), how(Geometry.pad), torch.bfloat16).dtype is torch.bfloat16


def test_the_preprocessing_is_read_from_the_assembled_model(tiny_model):
    loaded = Preprocessing.load(tiny_model)
    assert loaded.size == 16
    assert loaded.geometry is Geometry.pad
    assert loaded.mean == pytest.approx(MEAN)
    assert loaded.std == pytest.approx(STD)
