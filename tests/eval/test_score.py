import json

import pytest

from vlm.config import Scorer
from vlm.errors import Unusable
from vlm.eval.score import Accuracy, as_json, exact_match, headline, marks, score


@pytest.mark.parametrize(
    ("answer", "reference", "is_right"),
    [
        ("Yes", "yes", True),
        (" yes. ", "Yes", True),
        ("STRASSE", "straße", True),
        ("top left", "top  left", False),
        ("yes..", "yes", False),
        ("", "yes", False),
        ("yes, it is", "yes", False),
    ],
)
def test_exact_match_forgives_case_outer_space_and_one_full_stop(answer, reference, is_right):
    assert exact_match(answer, reference) is is_right


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 27.75), (5, 10, 23.66, 76.34), (10, 10, 72.25, 100.0), (81, 263, 25.53, 36.62)],
)
def test_the_interval_is_wilson_s(right, n, low, high):
    assert Accuracy(n, right).interval == pytest.approx((low, high), abs=0.01)


def test_a_missing_answer_is_refused_by_name(make_question):
    asked = [make_question(0), make_question(1), make_question(2)]
    with pytest.raises(Unusable, match="2 of 3 questions have no answer, q1 first"):
        marks(asked, {"q0": "yes"}, Scorer.exact_match)


def test_categories_and_visual_gain_are_counted_from_the_marks(make_question):
    asked = [make_question(i, category="shape" if i < 2 else "colour") for i in range(4)]
    metrics = as_json(score(asked, [True, True, True, False], [False, True, False, False]))
    assert (metrics["n"], metrics["accuracy"], metrics["shuffled"]["accuracy"]) == (4, 75.0, 25.0)
    assert metrics["visual_gain"] == 50.0
    assert list(metrics["categories"]) == ["colour", "shape"]
    assert metrics["categories"]["colour"]["accuracy"] == 50.0
    assert metrics["categories"]["shape"]["visual_gain"] == 50.0
    assert json.loads(json.dumps(metrics)) == metrics


def test_without_shuffled_answers_there_is_no_visual_gain(make_question):
    figures = headline(score([make_question(0)], [True], None))
    assert (figures["accuracy"], figures["shuffled"], figures["visual_gain"]) == (100.0, None, None)


def test_every_scorer_of_the_settings_is_there(make_question):
    for scorer in Scorer:
        assert marks([make_question(0)], {"q0": "yes"}, scorer) == [True]
