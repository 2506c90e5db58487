import re

import pytest

from vlm.eval.results import Result
from vlm.eval.samples_page import columns, write_samples
from vlm.eval.score import Marked, score


@pytest.fixture
def result(answered, questions, held_out):
    return Result("questions", held_out, answered, score(questions, Marked([one.mark for one in answered])))


def look(result, answer: str, right: bool) -> dict:
    return {"questions": [{"id": one.question.id, "answer": answer, "right": right} for one in result.answered]}


def test_each_question_has_its_pictures_and_a_column_for_each_look_latest_first(result, tmp_path):
    looks = {5: look(result, "", False), 10: look(result, "<b>red</b>", True)}
    write_samples(tmp_path / "samples.html", "tiny", [result], looks, 6)
    html = (tmp_path / "samples.html").read_text()
    body = re.findall(r"<tr>.*?</tr>", html.split("<tbody>")[1], re.S)
    assert len(body) == 6
    for row, one in zip(body, result.answered, strict=False):
        assert row.count("<img") == len(one.question.pictures)
        assert row.endswith('latest right">&lt;b&gt;red&lt;/b&gt;</td><td class="wrong"><em>nothing</em></td></tr>')
        assert f"<td>{one.question.reference}</td>" in row
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "http" not in html


def test_a_question_that_was_not_asked_at_a_look_has_an_empty_cell_there(result, tmp_path):
    write_samples(tmp_path / "page", "t", [result], {5: {"questions": []}, 10: look(result, "yes", True)}, 1)
    assert '<td class="latest right">yes</td><td></td></tr>' in (tmp_path / "page").read_text()


def test_of_many_looks_the_latest_the_first_and_some_between_are_shown():
    assert columns([10, 30, 20], 8) == [30, 20, 10]
    shown = columns(range(100, 10100, 100), 8)
    assert len(shown) == len(set(shown)) == 8
    assert (shown[0], shown[-1]) == (10000, 100)
