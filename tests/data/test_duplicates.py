from vlm.data.duplicates import NONE, digest_of, is_repeated
from vlm.data.samples import Reject, Row, Sample, Turn


def row(text: str = "red", copy: int = 0, **names) -> Row:
    sample = Sample(names.get("id", "1"), "mine", (Turn("user", "What?"), Turn("assistant", text)))
    return Row("mine", sample.id, sample, copy)


def test_equal_pictures_and_equal_text_have_one_digest_whatever_their_names():
    assert digest_of(row(id="1"), [b"a"]) == digest_of(row(id="2"), [b"a"])


def test_other_text_pictures_order_or_pass_has_another():
    others = [
        digest_of(row(), [b"a", b"b"]),
        digest_of(row("blue"), [b"a", b"b"]),
        digest_of(row(), [b"b", b"a"]),
        digest_of(row(), [b"ab"]),
        digest_of(row(copy=1), [b"a", b"b"]),
    ]
    assert len({*others}) == len(others)


def test_half_a_character_can_be_compared():
    assert digest_of(row("\ud83d"), []) != digest_of(row("\ud83e"), [])


def test_all_but_the_first_of_equals_are_repeated():
    one, two = digest_of(row("1"), []), digest_of(row("2"), [])
    assert is_repeated(b"".join([one, two, one, one, two])).tolist() == [False, False, True, True, True]
    assert is_repeated(b"").tolist() == []


def test_what_has_no_digest_is_never_repeated():
    assert digest_of(Row("mine", "1", Reject("format", "")), []) == NONE
    assert not is_repeated(NONE * 3).any()
