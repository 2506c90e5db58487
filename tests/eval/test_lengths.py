import re

import pytest

from vlm.eval.lengths import length_panels, words
from vlm.eval.results import Answered


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("two", 1), ("a red  cat.", 3), ("一只红色的猫", 6), ("红 cat", 2), ("café-au-lait", 1)],
)
def test_a_word_is_what_stands_between_spaces_or_a_chinese_letter(text, count):
    assert words(text) == count


def test_answers_are_counted_by_their_own_and_their_references_length(make_question):
    pairs = [("red cat", "red", 1.0), ("red cat", "red", 0.5), ("cat", "a big cat", 0.0)]
    answered = [Answered(make_question(i, reference=ref), said, mark) for i, (ref, said, mark) in enumerate(pairs)]
    drawn = length_panels(answered)
    assert re.findall(r"<title>(.*?)</title>", drawn) == [
        "1 expected, 3 answered: 1",
        "2 expected, 1 answered: 2",
        "1 words: 75.0 % of 2",
        "3 words: 0.0 % of 1",
    ]
    assert "1.7 words on average where 1.7 are expected" in drawn


def test_long_answers_share_their_steps_and_nothing_leaves_the_drawing(make_question):
    answered = [
        Answered(make_question(i, reference="word " * (i + 1)), "word " * (2 * i), i % 2 / 1.0) for i in range(90)
    ]
    drawn = length_panels(answered)
    assert len(set(re.findall(r'cx="([\d.]+)"', drawn))) <= 12
    for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', drawn):
        assert 0 <= float(x) <= 420 and 0 <= float(y) <= 260


def test_answers_that_nobody_marked_have_no_bars_and_empty_ones_are_counted(make_question):
    drawn = length_panels([Answered(make_question(i), said, None) for i, said in enumerate(["", "yes"])])
    assert "Marks" not in drawn and "1 answers are empty" in drawn
    assert length_panels([]) == ""
