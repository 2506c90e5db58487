import json

import pytest

from vlm.errors import Unusable
from vlm.eval.score import Marked, as_json, headline, mark, score


def test_a_missing_answer_is_refused_by_name(make_question):
    asked = [make_question(0), make_question(1), make_question(2)]
    with pytest.raises(Unusable, match="2 of 3 questions have no answer, q1 first"):
        mark(asked, {"q0": "yes"}, "exact_match")


def test_categories_and_visual_gain_are_counted_from_the_marks(make_question):
    asked = [make_question(i, category="shape" if i < 2 else "colour") for i in range(4)]
    blind = {"shuffled": Marked([0.0, 1.0, 0.0, 0.0])}
    metrics = as_json(score(asked, Marked([1.0, 1.0, 1.0, 0.0]), blind), "exact_match")
    assert (metrics["n"], metrics["score"], metrics["blind"]["shuffled"]["score"]) == (4, 75.0, 25.0)
    assert metrics["blind"]["shuffled"]["visual_gain"] == 50.0
    low, high = metrics["blind"]["shuffled"]["gain_interval"]
    assert low <= 50.0 <= high
    assert list(metrics["categories"]) == ["colour", "shape"]
    assert metrics["categories"]["colour"]["score"] == 50.0
    assert metrics["categories"]["shape"]["blind"]["shuffled"]["visual_gain"] == 50.0
    assert json.loads(json.dumps(metrics)) == metrics


def test_without_blind_answers_there_is_no_visual_gain(make_question):
    figures = headline(score([make_question(0)], Marked([1.0])))
    assert (figures["score"], [key for key in figures if "gain" in key]) == (100.0, [])


def test_answers_that_nobody_marks_have_no_score(make_question):
    asked = [make_question(0)]
    task = score(asked, mark(asked, {"q0": "a long story"}, "none"))
    assert task.total is None and headline(task)["score"] is None
    assert as_json(task, "none")["score"] is None


@pytest.mark.parametrize(
    ("scorer", "answers", "fault"),
    [
        ("vqa_m4c", {"q0": "yes"}, "question q0 has no 'answers'"),
        ("choice", {"q0": "A"}, "question q0 has no 'choices'"),
        ("exact_match", {"q0": "yes", "q7": "no"}, "1 answers are to questions that were not asked, q7 first"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(make_question, scorer, answers, fault):
    with pytest.raises(Unusable, match=fault):
        mark([make_question(0)], answers, scorer)


def test_no_question_and_a_label_that_is_neither_yes_nor_no_are_refused(make_question):
    with pytest.raises(Unusable, match="no question"):
        mark([], {}, "yes_no")
    with pytest.raises(Unusable, match="question q0: its reference is 'red'"):
        mark([make_question(0, reference="red")], {"q0": "yes"}, "yes_no")


def test_yes_no_figures_are_joined_by_question_id_for_each_category(make_question):
    asked = [make_question(i, (), "random" if i < 2 else "popular", "no" if i % 2 else "yes") for i in range(4)]
    answers = {"q3": "no", "q2": "no", "q1": "no", "q0": "yes"}  # in another order than the questions
    marked = mark(asked, answers, "yes_no")
    assert {name: of["accuracy"] for name, of in marked.figures.items()} == {
        "all": 75.0,
        "random": 100.0,
        "popular": 50.0,
    }
    assert (marked.figures["popular"]["precision"], marked.figures["popular"]["recall"]) == (None, 0.0)
    assert as_json(score(asked, marked), "yes_no")["figures"]["all"]["yes_share"] == 25.0
