import json

import pytest

from vlm.errors import Unusable
from vlm.eval.predictions import (
    Prediction,
    append,
    appending,
    part_of,
    read_given,
    read_parts,
    read_predictions,
    write_in_order,
)

YES = Prediction("q1", "yes", 1, "model", "asked")


def test_an_answer_is_on_disk_before_the_file_is_closed(tmp_path):
    path = tmp_path / "predictions" / "task.jsonl"
    hostile = Prediction("q1", 'two\nlines, "quoted", é\u2028')
    with appending(path) as handle:
        append(handle, [hostile])
        assert read_predictions(path) == {"q1": hostile}


@pytest.mark.parametrize("torn", [b'{"question_id": "q2", "answ', b'{"question_id": "q2", "answer": "\xc3'])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path, torn):
    path = tmp_path / "task.jsonl"
    path.write_bytes(YES.line().encode() + torn)
    assert read_predictions(path) == {"q1": YES}
    with appending(path) as handle:
        append(handle, [Prediction("q2", "no")])
    assert list(read_predictions(path)) == ["q1", "q2"]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (YES.line() + "{}\n" + YES.line(), r"task\.jsonl, line 2: no prediction"),
        (YES.line() * 2, "line 2: the question q1 is answered a second time"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path, lines, fault):
    (tmp_path / "task.jsonl").write_text(lines)
    with pytest.raises(Unusable, match=fault):
        read_predictions(tmp_path / "task.jsonl")


def test_the_files_of_all_ranks_become_one_in_the_order_of_the_questions(tmp_path):
    path = tmp_path / "task.jsonl"
    no = Prediction("q2", "no", 1, "model", "asked")
    for rank, one in enumerate((YES, no)):
        with appending(part_of(path, rank)) as handle:
            append(handle, [one])
    found = read_parts(path, "model", {"q1": "asked", "q2": "asked"})
    write_in_order(path, [found["q2"], found["q1"]])
    assert list(read_predictions(path).values()) == [no, YES]
    assert [file.name for file in tmp_path.iterdir()] == ["task.jsonl"]


@pytest.mark.parametrize(
    ("model", "asked", "fault"),
    [
        ("other", {"q1": "asked"}, "holds answers of another model"),
        ("model", {"q9": "asked"}, "answers the question q1, which is not asked"),
        ("model", {"q1": "otherwise"}, "with another prompt, other pictures or other generation settings"),
    ],
)
def test_answers_that_are_not_to_be_gone_on_with_are_refused(tmp_path, model, asked, fault):
    with appending(tmp_path / "task.jsonl") as handle:
        append(handle, [YES])
    with pytest.raises(Unusable, match=fault):
        read_parts(tmp_path / "task.jsonl", model, asked)


@pytest.mark.parametrize(
    ("records", "ids"),
    [
        ([{"question_id": 1, "text": "yes"}, {"question_id": 2, "text": "no"}], ["1", "2"]),  # LLaVA's
        ([{"image_id": 1, "caption": "yes"}, {"image_id": 2, "caption": "no"}], ["1", "2"]),  # COCO's
        ([{"question_id": "1", "answer": "yes"}, {"question_id": "2", "answer": "no"}], ["random/1", "random/2"]),
    ],
)
@pytest.mark.parametrize("as_list", [True, False])
def test_answers_of_others_are_read_in_their_own_shapes(tmp_path, records, ids, as_list):
    lines = json.dumps(records) if as_list else "\n".join(map(json.dumps, records))
    (tmp_path / "task.jsonl").write_text(lines)
    found = read_given(tmp_path / "task.jsonl", ids)
    assert {identity: one.answer for identity, one in found.items()} == dict(zip(ids, ("yes", "no"), strict=True))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "is not there"),
        ("{", "is no JSON"),
        ('{"question_id": 1}', "record 1: no prediction"),
        ('{"question_id": 7, "text": "a"}', "the question 7 is not one of this task"),
        ('{"question_id": 1, "text": "a"}\n' * 2, "record 2: the question 1 is answered a second time"),
    ],
)
def test_answers_of_others_that_cannot_be_used_are_named(tmp_path, text, fault):
    if text is not None:
        (tmp_path / "task.jsonl").write_text(text)
    with pytest.raises(Unusable, match=fault):
        read_given(tmp_path / "task.jsonl", ["1", "2"])
