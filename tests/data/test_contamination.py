import io
import os
import signal

import numpy as np
import pytest
from PIL import Image

from vlm.data.contamination import Excluded, difference_hash
from vlm.data.samples import Reject
from vlm.errors import Hindered, Unusable


def photograph(seed: int, size: tuple[int, int] = (200, 150)) -> Image.Image:
    """Blobs of colour, as smooth as a photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def saved(picture: Image.Image, form: str = "JPEG", **settings) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **settings)
    return out.getvalue()


@pytest.fixture
def excluded(corpus, record):
    """The first ten photographs, one asked about twice."""
    pictures = {f"{seed}.jpg": saved(photograph(seed)) for seed in range(10)}
    source = corpus([record(n, f"{n}.jpg") for n in [*range(10), 3]], "questions", pictures)
    return Excluded.of([source], 4, 10**6, 2)


def code_of(excluded: Excluded, data: bytes) -> str | None:
    try:
        excluded.check(data)
    except Reject as reason:
        return reason.code
    return None


def test_an_equal_picture_is_named(excluded):
    with pytest.raises(Reject, match="excluded_same: its picture is .*questions/images/3.jpg"):
        excluded.check(saved(photograph(3)))
    assert len(excluded.digests) == 10


@pytest.mark.parametrize(
    "changed",
    [
        saved(photograph(3), quality=40),
        saved(photograph(3), "PNG"),
        saved(photograph(3), "WEBP", quality=60),
        saved(photograph(3).resize((90, 70))),
        saved(photograph(3).convert("L")),
    ],
    ids=["quality", "png", "webp", "smaller", "grey"],
)
def test_another_size_or_compression_of_a_picture_is_near_equal(excluded, changed):
    assert code_of(excluded, changed) == "excluded_similar"


def test_other_pictures_are_let_through(excluded):
    assert {code_of(excluded, saved(photograph(seed))) for seed in range(10, 200)} == {None}


def test_flat_pictures_are_only_equal_to_themselves(corpus, record):
    white, black = (saved(Image.new("RGB", (20, 20), colour), "PNG") for colour in ("white", "black"))
    assert difference_hash(white) is difference_hash(black) is None
    excluded = Excluded.of([corpus([record(1, "a.png")], pictures={"a.png": white})], 4, 10**6, 1)
    assert code_of(excluded, white) == "excluded_same"
    assert code_of(excluded, black) is None


def test_without_a_distance_only_equal_bytes_count(corpus, record):
    source = corpus([record(1, "a.jpg")], pictures={"a.jpg": saved(photograph(1))})
    excluded = Excluded.of([source], None, 10**6, 1)
    assert code_of(excluded, saved(photograph(1))) == "excluded_same"
    assert code_of(excluded, saved(photograph(1), "PNG")) is None


def test_an_exclusion_with_gaps_is_refused(corpus, record):
    with pytest.raises(Unusable, match=r"data.exclude: the picture .*none.jpg cannot be read"):
        Excluded.of([corpus([record(1, "none.jpg")])], 4, 10**6, 1)
    assert Excluded.of([], 4, 10**6, 1) is None


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line_and_hinders_for_now(corpus, record, monkeypatch):
    source = corpus([record(0, "0.jpg")], "questions", {"0.jpg": saved(photograph(0))})
    monkeypatch.setattr("vlm.data.contamination._fingerprints", die)
    with pytest.raises(Hindered, match="data.exclude: a worker process was killed"):
        Excluded.of([source], 4, 10**6, 2)
