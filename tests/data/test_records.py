import json

import pytest

from vlm.data.records import joined, json_list, json_map, json_records
from vlm.errors import Unusable


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes):
        (tmp_path / "all.json").write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path / "all.json"

    return write


@pytest.mark.parametrize("mark", ["", "\ufeff", " \n", "\ufeff\n "])
def test_lists_objects_and_maps_are_read_after_marks_and_spaces(written, mark):
    assert list(json_records(written(mark + "[1, 2]"))) == [1, 2]
    assert list(json_list(written(mark + '{"a": 0, "b": [1, 2.5], "c": {"b": [3]}}'), "b")) == [1, 2.5]
    assert list(json_map(written(mark + '{"a": {"x": [1]}, "b": null}'))) == [("a", {"x": [1]}), ("b", None)]


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.999])
def test_json_cut_in_the_middle_is_named_in_one_line(written, cut):
    text = json.dumps({"questions": [{"question_id": n, "question": "是吗?"} for n in range(50)]}, ensure_ascii=False)
    path = written(text.encode()[: int(len(text.encode()) * cut)])
    for records in (json_list(path, "questions"), json_map(path)):
        with pytest.raises(Unusable, match="all.json is no whole JSON object") as fault:
            list(records)
        assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1]", "a list stands where"),
        ("", "no JSON object stands"),
        ('"text"', "no JSON object stands"),
        ('{"other": [1]}', "no records in a list called 'questions'"),
        ('{"questions": {"1": 2}}', "no records in a list called 'questions'"),
        ('{"questions": []}', "no records in a list called 'questions'"),
    ],
)
def test_another_shape_is_named(written, text, fault):
    with pytest.raises(Unusable, match=fault):
        list(json_list(written(text), "questions"))


def test_a_list_that_may_be_missing_is_empty(written):
    assert list(json_list(written('{"other": [1]}'), "questions", may_be_missing=True)) == []


def test_a_list_where_a_map_is_expected_is_named(written):
    with pytest.raises(Unusable, match="a list stands where"):
        list(json_map(written("[1]")))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_records_are_joined_by_their_key_in_any_order(order):
    found = joined(iter([{"id": n} for n in range(4)]), iter([{"id": n, "x": n} for n in order]), lambda one: one["id"])
    assert [other and other["x"] for _, other in found] == [0, 1, 2, None]


def test_equal_orders_are_joined_without_reading_ahead():
    asked = []

    def others():
        for number in range(100):
            asked.append(number)
            yield {"id": number}

    pairs = joined(iter([{"id": n} for n in range(100)]), others(), lambda one: one["id"])
    for number, _ in enumerate(pairs):
        assert asked[-1] == number
