import dataclasses

import pytest

from vlm.config import TaskConfig
from vlm.errors import Unusable
from vlm.eval.score import mark
from vlm.eval.scorers import exact_match, scorer_of


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


EXTRA = {"answers": ["yes"] * 4 + ["no"] * 6, "choices": ["no", "yes"], "correct_choice_idx": 1}


@pytest.mark.parametrize(
    ("scorer", "answer", "expected"),
    [
        ("exact_match", "yes", 1.0),
        ("vqa_official", "yes", 1.0),
        ("vqa_m4c", "Yes!", 1.0),
        ("choice", "B", 1.0),
        ("choice", "A", 0.0),
        ("yes_no", "Yes, there is", 1.0),
        ("yes_no", "No", 0.0),
    ],
)
def test_a_scorer_reads_what_the_corpus_says(make_question, scorer, answer, expected):
    question = dataclasses.replace(make_question(0), extra=EXTRA)
    assert mark([question], {"q0": answer}, scorer).marks == [expected]


def test_vqa_tells_both_dialects_by_name(make_question):
    question = dataclasses.replace(make_question(0), extra={"answers": ["bus stop"] * 10})
    figures = mark([question], {"q0": "Bus, stop."}, "vqa_official").figures["all"]
    assert figures == {
        "official": 0.0,
        "m4c": pytest.approx(100.0),
    }  # the challenge normalises only where people differ


def test_a_scorer_that_is_not_there_is_refused_with_the_nearest_one():
    assert scorer_of("pope", TaskConfig(scorer="yes_no")).metric == "accuracy"
    with pytest.raises(
        Unusable, match="^task pope: there is no scorer yesno: did you mean yes_no\\? choose of exact_match,"
    ):
        scorer_of("pope", TaskConfig(scorer="yesno"))
