import json
import re

from vlm.eval.page import GALLERY, STYLE, data, page


def test_the_page_asks_nothing_of_a_network():
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|src=", STYLE + GALLERY + page("run", ""))


def test_the_title_is_text():
    assert "<title>a &lt;b&gt;</title>" in page("a <b>", "")


def test_both_colour_schemes_and_phones_are_styled():
    assert "prefers-color-scheme: dark" in STYLE and "max-width: 640px" in STYLE
    assert "width=device-width" in page("run", "")


def test_no_data_can_end_its_element():
    text = "</script><!--<script>"
    element = data("cards", [text])
    inside = element.removeprefix('<script type="application/json" id="cards">').removesuffix("</script>")
    assert "<" not in inside and json.loads(inside) == [text]
