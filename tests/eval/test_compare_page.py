import json
import re

import pytest

from vlm.eval.compare_page import write_compare
from vlm.eval.results import Changed, Comparison, TaskComparison


@pytest.fixture
def comparison(held_out):
    changed = (
        Changed("q0", "colour", "Which?", ("red",), ("blue", "red"), (0.0, 1.0), 0, 1),
        Changed("q1", "count", "<b>?", ("two", "two"), ("two", "one"), (1.0, 0.3), 1, 1),
    )
    task = TaskComparison("exact match", 9, (50.0, 61.1), 11.1, (-5.0, 30.0), 0.4, "exact McNemar", changed, held_out)
    return Comparison(("before", "after & more"), {"questions": task})


def test_figures_and_changed_answers_are_shown(comparison, tmp_path):
    path = tmp_path / "compare.html"
    write_compare(path, comparison)
    html = path.read_text()
    cells = re.findall(r'data-of="(.*?)">(.*?)</td>', html)
    assert cells[:4] == [
        ("before", "50.0"),
        ("after &amp; more", "61.1"),
        ("difference", '<b class="">+11.10</b>'),
        ("95 % interval", "-5.00 to +30.00"),
    ]
    first, second = json.loads(html.split('id="cards">')[1].split("</script>")[0])
    assert [one["answer"] for one in first["said"]] == ["blue", "red"] and first["verdict"] == "gained"
    assert second["verdict"] == "lost" and second["references"] == ["two ×2"] and second["said"][1]["score"] == "0.30"
    assert not re.search(r"https?://|<link|<script src", html)


def test_in_a_browser_the_figure_of_worse_answers_leads_to_them(comparison, tmp_path, browser):
    path = tmp_path / "compare.html"
    write_compare(path, comparison)
    browser.get(path.as_uri())
    assert len(browser.find_elements("css selector", ".card img")) == 2
    browser.find_element("css selector", "td[data-of=worse] a").click()
    cards = browser.find_elements("css selector", ".card")
    assert [card.get_attribute("class") for card in cards] == ["card is-lost"] and "<b>?" in cards[0].text
    assert browser.get_log("browser") == []


def test_runs_without_a_difference_have_no_gallery(comparison, tmp_path):
    task = comparison.tasks["questions"]
    same = TaskComparison(task.metric, 9, (50.0, 50.0), 0.0, (0.0, 0.0), 1.0, task.test, (), None)
    write_compare(tmp_path / "compare.html", Comparison(("a", "b"), {"questions": same}))
    html = (tmp_path / "compare.html").read_text()
    assert "No answer's mark changed" in html and "<script" not in html
