from vlm.eval.outcome import table
from vlm.eval.score import BlindScore, Score, TaskScore

BLIND = {"shuffled": BlindScore(25.0, (10.0, 40.0), 50.0, (10.0, 80.0), 0.01)}
ALL = Score(1200, 75.0, (30.0, 95.0), BLIND)


def test_a_table_has_a_row_for_each_category_and_one_for_all():
    scores = TaskScore(ALL, {"colour": ALL, "count": ALL}, {"all": {"n": 1200, "precision": None, "recall": 33.333}})
    lines = table("pope", scores, "accuracy").splitlines()
    assert lines[0].split() == ["questions", "accuracy,", "%", "interval", "shuffled", "gain", "interval"]
    assert [line.split()[0] for line in lines[1:4]] == ["colour", "count", "pope"]
    assert lines[3].split()[1:] == ["1,200", "75.0", "30.0-95.0", "25.0", "+50.0", "+10.0", "to", "+80.0"]
    assert lines[5].split() == ["all", "1,200", "-", "33.33"]
    assert len({len(line) for line in lines[:4]}) == 1


def test_one_category_alone_is_not_said_twice_and_answers_without_marks_have_no_figures():
    assert len(table("pope", TaskScore(ALL, {"all": ALL}), "accuracy").splitlines()) == 2
    assert table("talk", TaskScore(None, {}), "answers only") == "talk: answers only"
