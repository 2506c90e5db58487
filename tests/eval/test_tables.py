import re

import pytest

from vlm.eval.score import BlindScore, Score
from vlm.eval.tables import Line, figures_table, forecast_panel, gain_panel, link_to, score_table

BLIND = BlindScore(25.0, (5.0, 70.0), 50.0, (10.0, 80.0), 0.2)
SEEING = Score(4, 75.0, (30.0, 95.0), {"shuffled": BLIND})
ALONE = Score(2, 50.0, (9.0, 91.0))


def widths(html, look):
    return re.findall(rf'class="{look}" style="width:([\d.]+)%', html)


def test_bars_are_as_long_as_the_score_and_intervals_stand_beside():
    table = score_table("category", [Line("a & b", "", SEEING), Line("alone", "<i>", ALONE)])
    assert "a &amp; b" in table and "&lt;i&gt;" in table
    assert widths(table, "bar") == ["75.00", "50.00"] and widths(table, "bar blind") == ["25.00"]
    assert "30.0 to 95.0" in table and "+50.0 <small>+10.0 to +80.0" in table
    assert table.count("gain over shuffled pictures</th>") == 1 and "no picture" not in table


def test_a_score_above_a_hundred_ends_the_scale():
    table = score_table("task", [Line("CIDEr", "", Score(9, 110.0, (100.0, 125.0))), Line("other", "", ALONE)])
    assert widths(table, "bar") == ["88.00", "40.00"]


def test_gains_are_sorted_and_a_loss_reaches_below_zero():
    worse = BlindScore(60.0, (50.0, 70.0), -10.0, (-25.0, 5.0), 0.3)
    panel = gain_panel("shuffled", {"down": Score(9, 50.0, (1, 2), {"shuffled": worse}), "up": SEEING, "none": ALONE})
    assert re.findall(r'class="name">(\w+)', panel) == ["up", "down"]
    places = [float(place) for place in re.findall(r"left:([\d.-]+)%", panel)]
    assert min(places) == 0.0 and max(places) < 100
    assert "bar loss" in panel and "-10.0" in panel
    assert gain_panel("removed", {"up": SEEING}) == ""


def test_a_scorers_own_figures_have_a_dash_where_nothing_is_to_be_divided():
    table = figures_table({"all": {"yes_share": 0.0, "precision": None}, "random": {"yes_share": 12.345}})
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", table) == [
        *("", "yes share", "precision", "all", "0.00", "–", "random", "12.35", "–")
    ]
    assert figures_table({}) == ""


@pytest.mark.parametrize(
    ("predicted", "measured", "shown"),
    [
        (5198, 5198, ["5,198", "5,198", "0 %"]),
        (5.4, 6.0, ["5.4", "6", "-10 %"]),
        (1.0, None, ["1", "–", ""]),
        (None, 2.5, ["–", "2.5", ""]),
    ],
)
def test_what_was_predicted_stands_beside_what_was_measured(predicted, measured, shown):
    row = {"name": "time", "unit": "s", "predicted": predicted, "measured": measured}
    assert re.findall("<td>(.*?)</td>", forecast_panel("04_finetune", [row])) == shown


def test_a_link_holds_any_text():
    assert link_to(verdict="wrong", search="a & b#") == "#verdict=wrong&search=a%20%26%20b%23"
