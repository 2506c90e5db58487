import dataclasses
import re
from html.parser import HTMLParser

import pytest

from vlm.eval.charts import Curve
from vlm.eval.report import write_report
from vlm.eval.results import Result, Unseen
from vlm.eval.score import Marked, score

HOSTILE = "</p><script>alert(1)</script>\"'&"
VOID = {"meta", "img", "input"}


class Tags(HTMLParser):
    """Collects tags and text; fails where they do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def result(answered, held_out):
    questions = [one.question for one in answered]
    marks, blind = Marked([one.mark for one in answered]), {"shuffled": Marked([0.0] * len(questions))}
    return Result("colours", held_out, answered, score(questions, marks, blind))


def read(path):
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    assert tags.open == []
    return tags


def test_one_file_holds_figures_curves_and_as_many_answers_as_asked_for(result, tmp_path):
    path = tmp_path / "report.html"
    curves = {"03_pretrain": Curve((1, 2), (3.0, 2.0), ()), "04_finetune": Curve((1, 2), (2.0, 1.0), (1e-3, 0.0))}
    write_report(path, "my run", [result], curves, gallery=12, seed=0)
    tags, text = read(path), path.read_text()
    assert "my run" in tags.text and "35.0" in tags.text and "+35.0" in tags.text
    assert sum(tag == "article" for tag, _ in tags.seen) == 12
    assert sum(tag == "svg" for tag, _ in tags.seen) == 2
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for tag, attrs in tags.seen if tag == "img")
    assert not re.search(r"https?://|<link|<script src", text)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_answers_questions_and_names_are_text_never_html(result, tmp_path):
    answered = [
        dataclasses.replace(
            one,
            answer=HOSTILE,
            blind={"shuffled": Unseen(HOSTILE, 0.0)},
            question=dataclasses.replace(one.question, text=HOSTILE, reference=HOSTILE, category=HOSTILE),
        )
        for one in result.answered
    ]
    scores = score([one.question for one in answered], Marked([0.0] * len(answered)))
    write_report(tmp_path / "report.html", HOSTILE, [Result(HOSTILE, result.split, answered, scores)], {}, 5, 0)
    tags = read(tmp_path / "report.html")
    assert sum(tag == "script" for tag, _ in tags.seen) == 1
    assert {attrs["data-category"] for tag, attrs in tags.seen if tag == "article"} == {HOSTILE}


def test_two_tasks_share_the_gallery(result, tmp_path):
    other = dataclasses.replace(result, name="others")
    write_report(tmp_path / "report.html", "run", [result, other], {}, gallery=9, seed=0)
    shown = [
        attrs["data-category"].split(":")[0] for tag, attrs in read(tmp_path / "report.html").seen if tag == "article"
    ]
    assert (shown.count("colours"), shown.count("others")) == (5, 4)


def test_the_same_answers_give_the_same_bytes(result, tmp_path):
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, "run", [result], {}, gallery=8, seed=3)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
