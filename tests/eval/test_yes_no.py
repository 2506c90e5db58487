import pytest

from vlm.errors import Unusable
from vlm.eval.yes_no import mme, mme_answer, pope, said_yes


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [("Yes", True), ("no", False), ("No, there is none.", False), ("There is not. Yes", False), ("Nothing", True),
     ("Yes. There is no dog.", True), ("", True)],
)  # fmt: skip
def test_an_answer_is_read_as_pope_reads_it(answer, is_yes):
    assert said_yes(answer) is is_yes


def test_pope_s_figures_by_hand():
    figures = pope([True, True, True, False, False], [True, True, False, True, False])  # 2 found, 1 false, 1 missed
    assert (figures.n, figures.accuracy, figures.yes_share) == (5, 60.0, 60.0)
    assert (figures.precision, figures.recall, figures.f1) == pytest.approx((200 / 3,) * 3)


def test_a_model_that_always_says_no_has_no_precision_and_finds_nothing():
    figures = pope([False] * 4, [True, True, False, False])
    assert (figures.accuracy, figures.precision, figures.recall, figures.f1) == (50.0, None, 0.0, 0.0)
    assert figures.yes_share == 0.0


def test_no_question_is_refused():
    with pytest.raises(Unusable, match="no yes/no question"):
        pope([], [])
    with pytest.raises(Unusable, match="no yes/no question"):
        mme([], [])


@pytest.mark.parametrize(("answer", "word"), [("Yes, it is", "yes"), ("No.", "no"), ("Maybe yes", None), ("", None)])
def test_mme_reads_the_beginning(answer, word):
    assert mme_answer(answer) == word


def test_acc_plus_counts_pictures_whose_two_questions_are_right():
    assert mme([True, True, True, False], ["a", "a", "b", "b"]) == (75.0, 50.0)


def test_a_picture_without_its_pair_is_refused_by_name():
    with pytest.raises(Unusable, match="the picture b has 1 questions"):
        mme([True, True, True], ["a", "a", "b"])
