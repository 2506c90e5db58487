import re

import numpy as np

from vlm.data.preview_page import histogram, page, reject_table, tabs


def test_a_histogram_counts_every_sample():
    lengths = np.array([0, 1, 1, 30, 2047])
    drawn = histogram("Tokens", lengths, limit=2048)
    assert sum(int(count.replace(",", "")) for count in re.findall(r"tokens: ([\d,]+)<", drawn)) == 5
    assert 'class="limit"' in drawn
    assert 'class="limit"' not in histogram("Tokens", lengths[:3], limit=2048)
    assert histogram("Tokens", lengths[:0]) == ""


def test_names_of_a_corpus_are_text_on_the_page():
    parts = [tabs([("<b>", "one"), ("two", "two")], "split", 2), reject_table([("<code>", 1200, ["a & <b>"])])]
    text = page("<title>", "".join(parts))
    assert text.count("<title>") == 1
    assert "<b>" not in text
    assert "<code>" not in text
    assert "1,200" in text
    assert "a &amp; &lt;b&gt;" in text


def test_a_single_panel_needs_no_tabs():
    assert "tablist" not in tabs([("all", "one")], "split", 2)
    assert tabs([("all", "one"), ("none", "two")], "split", 2).count('role="tab"') == 2
