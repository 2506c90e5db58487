import pytest

from vlm.eval.results import Answered


@pytest.mark.parametrize(("mark", "is_right"), [(1.0, True), (0.5, True), (0.3, False), (None, None)])
def test_an_answer_without_a_mark_is_neither_right_nor_wrong(make_question, mark, is_right):
    assert Answered(make_question(0), "yes", mark).is_right is is_right
