import pytest

from vlm.errors import Unusable
from vlm.eval.predictions import Prediction, append, appending, read_predictions, write_in_order


def test_an_answer_is_on_disk_before_the_file_is_closed(tmp_path):
    path = tmp_path / "predictions" / "task.jsonl"
    with appending(path) as handle:
        append(handle, Prediction("q1", 'two\nlines, "quoted", é'))
        assert read_predictions(path) == {"q1": 'two\nlines, "quoted", é'}


@pytest.mark.parametrize("torn", [b'{"question_id": "q2", "answ', b'{"question_id": "q2", "answer": "\xc3'])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path, torn):
    path = tmp_path / "task.jsonl"
    path.write_bytes(Prediction("q1", "yes").line().encode() + torn)
    assert read_predictions(path) == {"q1": "yes"}
    with appending(path) as handle:
        append(handle, Prediction("q2", "no"))
    assert read_predictions(path) == {"q1": "yes", "q2": "no"}


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text(Prediction("q1", "yes").line() + "{}\n" + Prediction("q2", "no").line())
    with pytest.raises(Unusable, match=r"task\.jsonl, line 2"):
        read_predictions(path)


def test_the_final_file_is_in_the_order_of_the_questions(tmp_path):
    path = tmp_path / "task.jsonl"
    write_in_order(path, ["q2", "q1"], {"q1": "a", "q2": "b", "stale": "c"})
    assert list(read_predictions(path).items()) == [("q2", "b"), ("q1", "a")]
    assert [file.name for file in tmp_path.iterdir()] == ["task.jsonl"]
