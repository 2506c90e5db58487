import re

from vlm.eval.page import SCRIPT, STYLE, page


def test_the_page_asks_nothing_of_a_network():
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|src=", STYLE + SCRIPT + page("run", ""))


def test_the_title_is_text():
    assert "<title>a &lt;b&gt;</title>" in page("a <b>", "")


def test_both_colour_schemes_and_phones_are_styled():
    assert "prefers-color-scheme: dark" in STYLE and "max-width: 560px" in STYLE
    assert "width=device-width" in page("run", "")
