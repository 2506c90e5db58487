from dataclasses import replace

import pytest
from PIL import Image

from vlm.config import Form
from vlm.data.checks import Checked, Checks
from vlm.data.duplicates import NONE
from vlm.data.images import InFolder, InTar
from vlm.data.samples import Reject, Row, Sample, Turn

EXCHANGE = (Turn("user", "<image>\nWhat?"), Turn("assistant", "red"))


@pytest.fixture
def checks(tiny_chat):
    return Checks(tiny_chat, Form.chat, max_tokens=256, max_pixels=10_000)


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    return InFolder(str(tmp_path), "a.png")


def row(*turns, images=()) -> Row:
    return Row("mine", "1", Sample("1", "mine", turns, tuple(images)))


def checked(checks: Checks, one: Row) -> Checked:
    return checks.of(one, checks.lengths(one))


def test_a_good_sample_is_counted(checks, picture):
    good = checked(checks, row(*EXCHANGE, images=[picture]))
    assert good.size == (20, 30)
    assert good.targets == len(checks.chat.tokenizer.encode("red<|im_end|>", add_special_tokens=False))
    assert good.tokens > good.targets + checks.chat.image_tokens


def test_turns_that_do_not_fit_are_neither_counted_nor_kept(checks, picture):
    long = (Turn("user", "What? " * 300), Turn("assistant", "red"))
    good = checked(checks, row(*EXCHANGE, *long, images=[picture]))
    assert good.cut_turns == 2
    assert good.sample.turns == EXCHANGE


def test_a_fault_of_a_picture_names_its_file(checks, tmp_path, picture):
    with pytest.raises(Reject, match="missing_image: .*b.png: No such file"):
        checked(checks, row(*EXCHANGE, images=[InFolder(str(tmp_path), "b.png")]))
    (tmp_path / "a.png").write_bytes(picture.read()[:40])
    with pytest.raises(Reject, match="a.png"):
        checked(checks, row(*EXCHANGE, images=[picture]))


def test_of_two_faults_the_picture_s_is_named(checks, tmp_path, picture):
    silent = (EXCHANGE[0], Turn("assistant", " "))
    with pytest.raises(Reject, match="empty_answer"):
        checked(checks, row(*silent, images=[picture]))
    with pytest.raises(Reject, match="missing_image"):
        checked(checks, row(*silent, images=[InFolder(str(tmp_path), "b.png")]))


def test_a_row_that_was_rejected_on_reading_stays_so(checks):
    with pytest.raises(Reject, match="format"):
        checked(checks, Row("mine", "1", Reject("format", "no turns")))


def test_a_file_that_is_too_large_is_not_read(checks, picture):
    small = replace(checks, max_image_bytes=10)
    with pytest.raises(Reject, match="too_large: .*a.png: .* bytes, more than 10"):
        checked(small, row(*EXCHANGE, images=[picture]))


def test_a_damaged_archive_is_a_corrupt_picture(checks, tmp_path):
    (tmp_path / "0.tar").write_bytes(b"x" * 10)
    with pytest.raises(Reject, match="corrupt: .*0.tar/a.jpg: the archive ends"):
        checked(checks, row(*EXCHANGE, images=[InTar(str(tmp_path / "0.tar"), "a.jpg", 5, 100)]))


def test_a_row_has_the_digest_that_its_check_finds(checks, picture):
    good = row(*EXCHANGE, images=[picture])
    assert checks.digest(good) == checked(checks, good).digest
    assert checks.digest(row(*EXCHANGE, images=[InFolder("none", "a.png")])) == NONE
    assert checks.digest(Row("mine", "1", Reject("format", "no turns"))) == NONE
