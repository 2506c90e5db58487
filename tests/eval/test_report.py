import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from vlm.eval.charts import Curve
from vlm.eval.report import Beside, write_report
from vlm.eval.results import Before, Earlier, Result, Unseen
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


def stored(path, name):
    return json.loads(path.read_text(encoding="utf-8").split(f'id="{name}">')[1].split("</script>")[0])


FORECAST = {"04_finetune": [{"name": "steps", "unit": "", "predicted": 2, "measured": 2}]}


def test_one_file_holds_figures_curves_and_as_many_answers_as_asked_for(result, tmp_path):
    path = tmp_path / "report.html"
    curves = {"03_pretrain": Curve((1, 2), (3.0, 2.0), ()), "04_finetune": Curve((1, 2), (2.0, 1.0), (1e-3, 0.0))}
    write_report(path, "my run", [result], curves, 12, 0, Beside(FORECAST))
    tags, text = read(path), path.read_text()
    assert "my run" in tags.text and "35.0" in tags.text and "+35.0 " in tags.text
    assert "04_finetune: predicted and measured" in tags.text
    assert len(stored(path, "cards")) == 12
    assert sum(tag == "svg" for tag, _ in tags.seen) == 4  # two losses, lengths, marks by length
    assert all(address.startswith("data:image/webp;base64,") for address in stored(path, "pictures"))
    assert not re.search(r"https?://|<link|<script src", text)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_answers_questions_and_names_are_text_never_html(result, tmp_path):
    answered = [
        dataclasses.replace(
            one,
            answer=HOSTILE,
            blind={"shuffled": Unseen(HOSTILE, 0.0)},
            question=dataclasses.replace(one.question, text=HOSTILE, reference=HOSTILE, category=f"{i % 2}{HOSTILE}"),
        )
        for i, one in enumerate(result.answered)
    ]
    scores = score([one.question for one in answered], Marked([0.0] * len(answered)))
    path = tmp_path / "report.html"
    write_report(path, HOSTILE, [Result(HOSTILE, result.split, answered, scores)], {}, 5, 0)
    tags = read(path)
    assert [attrs.get("id") for tag, attrs in tags.seen if tag == "script"] == ["cards", "pictures", None]
    assert all(one["question"] == one["said"][0]["answer"] == HOSTILE for one in stored(path, "cards"))


def test_two_tasks_share_the_gallery(result, tmp_path):
    other = dataclasses.replace(result, name="others")
    write_report(tmp_path / "report.html", "run", [result, other], {}, 9, 0)
    shown = [one["category"].split(":")[0] for one in stored(tmp_path / "report.html", "cards")]
    assert (shown.count("colours"), shown.count("others")) == (5, 4)


def test_a_right_answer_tells_whether_it_needs_its_picture(result, tmp_path):
    answered = [
        dataclasses.replace(one, blind={"shuffled": Unseen("blind", float(i % 2))})
        for i, one in enumerate(result.answered)
    ]
    path = tmp_path / "report.html"
    write_report(path, "run", [dataclasses.replace(result, answered=answered)], {}, 99, 0)
    looks = {one["id"]: one["look"] for one in stored(path, "cards")}
    for i, one in enumerate(answered):
        expected = ("blind" if i % 2 else "needs") if one.is_right and one.question.pictures else ""
        assert looks[one.question.id] == expected


def test_what_nobody_marked_is_shown_without_a_score(result, tmp_path):
    answered = [dataclasses.replace(one, mark=None, blind={}) for one in result.answered]
    scores = score([one.question for one in answered], Marked([None] * len(answered)))
    path = tmp_path / "report.html"
    write_report(path, "run", [Result("free", result.split, answered, scores, "answers only")], {}, 99, 0)
    assert {one["verdict_text"] for one in stored(path, "cards")} == {"not marked"}
    assert not [1 for tag, attrs in read(path).seen if "scores" in (attrs.get("class") or "")]


def test_the_same_answers_give_the_same_bytes(result, tmp_path):
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, "run", [result], {}, 8, 3)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_in_a_browser_answers_are_filtered_searched_and_seen_and_the_console_is_silent(result, tmp_path, browser):
    many = [
        dataclasses.replace(one, question=dataclasses.replace(one.question, id=f"{one.question.id}/{copy}"))
        for copy in range(125)
        for one in result.answered
    ]
    path = tmp_path / "report.html"
    before = {
        one.question.id: Before(one.question.text, "?" if i < 7 else one.answer, one.mark) for i, one in enumerate(many)
    }
    beside = Beside(earlier=Earlier("first", {result.name: before}))
    write_report(path, "run", [dataclasses.replace(result, answered=many)], {}, 5000, 0, beside)
    browser.get(path.as_uri())

    def cards():
        return browser.find_elements("css selector", ".card")

    def count():
        return browser.find_element("css selector", ".tools output").text

    assert count() == "5,000 of 5,000" and len(cards()) < 200  # the others are made as one comes near
    picture = browser.find_element("css selector", ".card .shown img")
    assert picture.is_displayed() and browser.execute_script("return arguments[0].naturalWidth", picture) > 0
    browser.find_element("css selector", "button[value=wrong]").click()
    wrong = sum(not one.is_right for one in many)
    assert count() == f"{wrong:,} of 5,000"
    assert {card.get_attribute("class") for card in cards()} == {"card is-wrong"}
    browser.find_element("css selector", "button[value=changed]").click()
    assert count() == "7 of 5,000" and all("in first\n?" in card.text for card in cards())
    browser.find_element("css selector", "button[value='']").click()
    browser.find_element("css selector", "input[type=search]").send_keys("6? SQUARE")
    found = [one for one in many if "6?" in one.question.text and "square" in one.question.text]
    assert count() == f"{len(found)} of 5,000" and len(found) == 500
    assert all("6?" in card.text for card in cards())
    browser.find_element("css selector", "input[type=search]").clear()
    browser.get(f"{path.as_uri()}#category=existence&verdict=right")  # as a category's name in the table leads there
    chosen = sum(one.question.category == "existence" and one.is_right for one in many)
    assert count() == f"{chosen:,} of 5,000"
    assert len(cards()) < chosen
    for _ in range(100):  # more come as one scrolls
        browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
        browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert len(cards()) == chosen
    for width in (390, 1200):
        browser.set_window_size(width, 900)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []


def test_answers_that_have_changed_since_another_run_are_marked(result, tmp_path):
    same, other, reworded, *rest = result.answered
    before = {one.question.id: Before(one.question.text, one.answer, one.mark) for one in result.answered}
    before[other.question.id] = Before(other.question.text, "before", 1.0)
    before[reworded.question.id] = Before("another question", "before", 1.0)
    del before[rest[0].question.id]
    path = tmp_path / "report.html"
    write_report(path, "now", [result], {}, 99, 0, Beside(earlier=Earlier("first", {result.name: before})))
    cards = {one["id"]: one for one in stored(path, "cards")}
    assert [identity for identity, one in cards.items() if one["changed"]] == [other.question.id]
    said = {
        identity: [line["answer"] for line in one["said"] if line["label"] == "in first"]
        for identity, one in cards.items()
    }
    assert said[other.question.id] == ["before"] and said[same.question.id] == [same.answer]
    assert said[reworded.question.id] == said[rest[0].question.id] == []
    assert '<button value="changed" aria-pressed="false">Changed</button>' in path.read_text()
    assert "those that first answered otherwise" in path.read_text()
