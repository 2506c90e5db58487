import json

import pytest

from vlm.config import SourceConfig
from vlm.data.sources import read
from vlm.errors import Unusable

PROBLEM = {
    "question": "Which colony is it?",
    "choices": ["Maryland", "Vermont"],
    "answer": 1,
    "hint": "",
    "image": None,
    "split": "test",
    "subject": "social science",
    "lecture": "",
}
PROBLEMS = {
    "4": PROBLEM,
    "11": PROBLEM | {"image": "image.png", "hint": "Look north."},
    "2": PROBLEM | {"split": "train"},
    "bad": PROBLEM | {"answer": 2},
    "none": [1],
}
SPLITS = {"train": ["2"], "test": ["4", "11"], "minitest": ["11"]}


@pytest.fixture
def rows_of(tmp_path):
    def write(problems: object = PROBLEMS, splits: object = SPLITS, split: str | None = None) -> list:
        (tmp_path / "problems.json").write_text(json.dumps(problems))
        (tmp_path / "pid_splits.json").write_text(splits if isinstance(splits, str) else json.dumps(splits))
        source = SourceConfig(
            path=str(tmp_path / "problems.json"),
            images=str(tmp_path),
            format="scienceqa",
            annotations=str(tmp_path / "pid_splits.json") if split else None,
            split=split,
        )
        return list(read(source))

    return write


def test_problems_with_and_without_a_picture_are_answered_by_a_letter(rows_of):
    text, picture = rows_of(split="test")
    assert text.sample.images == ()
    assert text.sample.turns[0].text == (
        "Which colony is it?\nA. Maryland\nB. Vermont\nAnswer with the option's letter from the given choices directly."
    )
    assert text.sample.turns[1].text == "B"
    assert text.sample.extra == {
        "subject": "social science",
        "question_id": "4",
        "choices": ["Maryland", "Vermont"],
        "correct_choice_idx": 1,
        "label": "B",
    }
    assert picture.sample.turns[0].text.startswith("<image>\nContext: Look north.\nWhich colony")
    assert picture.sample.images[0].name == "test/11/image.png"


def test_without_a_split_all_problems_are_read_and_bad_ones_rejected(rows_of):
    rows = rows_of()
    assert [row.id for row in rows] == list(PROBLEMS)
    assert [getattr(row.sample, "code", None) for row in rows] == [None, None, None, "no_answer", "format"]


@pytest.mark.parametrize(
    ("splits", "fault"),
    [(SPLITS, "no split 'val' .its splits: train, test, minitest"), ([1], "no split 'val'"), ("{", "is no JSON")],
)
def test_a_split_that_is_not_there_is_named(rows_of, splits, fault):
    with pytest.raises(Unusable, match=fault):
        rows_of(splits=splits, split="val")
