import dataclasses
import json

import pytest

from vlm.config import Scorer
from vlm.errors import Unusable
from vlm.eval.score import SCORERS, Accuracy, as_json, exact_match, headline, marks, score, yes_no_figures


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


EXTRA = {"answers": ["yes"] * 4 + ["no"] * 6, "choices": ["no", "yes"], "correct_choice_idx": 1}


@pytest.mark.parametrize(
    ("scorer", "answer", "mark"),
    [
        (Scorer.exact_match, "yes", 1.0),
        (Scorer.vqa_official, "yes", 1.0),
        (Scorer.vqa_m4c, "Yes!", 1.0),
        (Scorer.choice, "B", 1.0),
        (Scorer.choice, "A", 0.0),
        (Scorer.yes_no, "Yes, there is", 1.0),
        (Scorer.yes_no, "No", 0.0),
    ],
)
def test_a_scorer_reads_what_the_corpus_says(make_question, scorer, answer, mark):
    question = dataclasses.replace(make_question(0), extra=EXTRA)
    assert marks([question], {"q0": answer}, scorer) == [mark]


def test_every_scorer_of_the_settings_is_there():
    assert set(SCORERS) == set(Scorer)


@pytest.mark.parametrize(
    ("scorer", "answers", "fault"),
    [
        (Scorer.vqa_m4c, {"q0": "yes"}, "question q0 has no 'answers'"),
        (Scorer.choice, {"q0": "A"}, "question q0 has no 'choices'"),
        (Scorer.exact_match, {"q0": "yes", "q7": "no"}, "1 answers are to questions that were not asked, q7 first"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(make_question, scorer, answers, fault):
    with pytest.raises(Unusable, match=fault):
        marks([make_question(0)], answers, scorer)


def test_no_question_and_a_label_that_is_neither_yes_nor_no_are_refused(make_question):
    with pytest.raises(Unusable, match="no question"):
        marks([], {}, Scorer.yes_no)
    with pytest.raises(Unusable, match="question q0: its reference is 'red'"):
        marks([make_question(0, reference="red")], {"q0": "yes"}, Scorer.yes_no)


def test_yes_no_figures_are_joined_by_question_id_for_each_category(make_question):
    asked = [make_question(i, (), "random" if i < 2 else "popular", "no" if i % 2 else "yes") for i in range(4)]
    answers = {"q3": "no", "q2": "no", "q1": "no", "q0": "yes"}  # in another order than the questions
    figures = yes_no_figures(asked, answers)
    assert {name: of.accuracy for name, of in figures.items()} == {"all": 75.0, "random": 100.0, "popular": 50.0}
    assert (figures["popular"].precision, figures["popular"].recall) == (None, 0.0)
    task = dataclasses.replace(score(asked, marks(asked, answers, Scorer.yes_no), None), yes_no=figures)
    assert as_json(task)["yes_no"]["all"]["yes_share"] == 25.0
