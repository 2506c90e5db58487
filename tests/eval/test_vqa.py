import pytest

from vlm.eval.vqa import m4c, official


@pytest.mark.parametrize(("people", "worth"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
@pytest.mark.parametrize("scorer", [official, m4c])
def test_each_of_ten_people_is_left_out_once(scorer, people, worth):
    references = ["cat"] * people + [f"other{i}" for i in range(10 - people)]
    assert scorer("cat", references) == pytest.approx(worth)


@pytest.mark.parametrize(
    "answer",
    ["Two Dogs.", "2 dogs", "the two dogs", "two dogs!", "a two\ndogs", "two - dogs"],
)
def test_where_people_differ_both_dialects_forgive_form(answer):
    references = ["two dogs"] * 9 + ["three"]
    assert official(answer, references) == m4c(answer, references) == 1.0


def test_only_m4c_forgives_form_where_all_people_agree():
    assert official("Cat.", ["cat"] * 10) == 0.0
    assert m4c("Cat.", ["cat"] * 10) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("dont", "don't"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"), ("1,000", "1000"), ("u.s.", "us"),
     ("4.5", "4.5"), ("red/blue", "red blue"), ("none", "0")],
)  # fmt: skip
def test_the_challenge_s_normal_form(answer, reference):
    assert official(answer, [reference] * 9 + ["x"]) == 1.0


def test_a_decimal_point_and_a_letter_count():
    assert official("4.5", ["45"] * 9 + ["x"]) == 0.0
    assert official("dont", ["dot"] * 9 + ["x"]) == 0.0
