import json

import pytest

from vlm.config import Answers, SourceConfig
from vlm.data.samples import Reject
from vlm.data.sources import read
from vlm.data.vqa import letter, listed, most_frequent, with_suffix
from vlm.errors import Unusable

TEN = ["pony tail", "braid", "braid", "pony tail", "pony tail", "bun", "bun", "bun", "tail", "hair"]
QUESTIONS = [{"image_id": 51606, "question": f"What is it {n}?", "question_id": 516065 + n} for n in range(3)]
ANNOTATIONS = [
    {
        "question_id": 516065 + n,
        "question_type": "four",
        "answer_type": "other",
        "answers": [{"answer_id": i, "raw_answer": text.upper(), "answer": text} for i, text in enumerate(TEN)],
    }
    for n in (2, 0, 1)
]
AOKVQA = {
    "split": "val",
    "image_id": 4795,
    "question_id": "2N5s",
    "question": "Which surface?",
    "choices": ["barren", "crowded", "minimalist", "empty"],
    "correct_choice_idx": 1,
    "direct_answers": TEN,
    "rationales": ["There are many."],
}


@pytest.fixture
def vqa(tmp_path):
    """Return a function that reads OK-VQA's two files."""

    def write(questions: object, annotations: object, **settings) -> list:
        for name, content in (("questions", questions), ("annotations", annotations)):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        places = {"path": str(tmp_path / "questions.json"), "annotations": str(tmp_path / "annotations.json")}
        return list(read(SourceConfig(**places, images="/", format="vqa", **settings)))

    return write


@pytest.fixture
def aokvqa(tmp_path):
    def write(*records: object, **settings) -> list:
        (tmp_path / "aokvqa.json").write_text(json.dumps(records))
        path = str(tmp_path / "aokvqa.json")
        return list(read(SourceConfig(path=path, images="/", format="aokvqa", **settings)))

    return write


def test_the_most_frequent_answer_is_taught_and_all_ten_travel(vqa):
    rows = vqa({"questions": QUESTIONS}, {"annotations": ANNOTATIONS}, image_names="COCO_train2014_{:012d}.jpg")
    assert [row.id for row in rows] == ["516065", "516066", "516067"]
    user, assistant = rows[0].sample.turns
    assert user.text == "<image>\nWhat is it 0?\nAnswer the question using a single word or phrase."
    assert assistant.text == "pony tail"
    assert rows[0].sample.images[0].name == "COCO_train2014_000000051606.jpg"
    assert rows[1].sample.extra == {
        "question_id": 516066,
        "answers": TEN,
        "question_type": "four",
        "answer_type": "other",
    }


def test_of_equally_frequent_answers_the_first_is_taken():
    assert most_frequent(["b", "a", "a", "b", "c"]) == "b"
    assert most_frequent(["c", "a", "b", "b", "a"]) == "a"


def test_an_empty_answer_is_not_taught_however_frequent():
    assert most_frequent(["", "c", "", " ", "b"]) == "c"
    with pytest.raises(Reject, match="no_answer: all its answers are empty"):
        most_frequent(["", " "])


def test_what_follows_a_question_is_a_setting(vqa):
    asks = [vqa({"questions": QUESTIONS}, {"annotations": ANNOTATIONS}, prompt=p)[0] for p in ("Be brief.", "")]
    assert [row.sample.turns[0].text for row in asks] == ["<image>\nWhat is it 0?\nBe brief.", "<image>\nWhat is it 0?"]
    assert with_suffix("What?", None, "x") == "What?\nx"


@pytest.mark.parametrize(
    ("question", "annotation", "code"),
    [
        ({}, None, "no_answer"),
        ({}, {"answers": []}, "no_answer"),
        ({}, {"answers": "yes"}, "format"),
        ({}, {"answers": [{"raw_answer": "yes"}]}, "format"),
        ({"question": None}, ANNOTATIONS[1], "format"),
        ({"image_id": "51606"}, ANNOTATIONS[1], "format"),
    ],
)
def test_a_question_that_cannot_be_taught_is_rejected(vqa, question, annotation, code):
    annotations = [*ANNOTATIONS[2:], *([{"question_id": 516065, **annotation}] if annotation else [])]
    first, second = vqa({"questions": [QUESTIONS[0] | question, QUESTIONS[1]]}, {"annotations": annotations})
    assert isinstance(first.sample, Reject)
    assert first.sample.code == code
    assert not isinstance(second.sample, Reject)


@pytest.mark.parametrize(
    ("questions", "annotations", "fault"),
    [
        (QUESTIONS, {"annotations": ANNOTATIONS}, "questions.json: a list stands"),
        ({"questions": QUESTIONS}, ANNOTATIONS, "annotations.json: a list stands"),
        ({"questions": [{"question": "x"}]}, {"annotations": ANNOTATIONS}, "no question_id"),
        ({"questions": [1]}, {"annotations": ANNOTATIONS}, "no question_id"),
    ],
)
def test_files_of_another_shape_are_named(vqa, questions, annotations, fault):
    with pytest.raises(Unusable, match=fault):
        vqa(questions, annotations)


def test_a_direct_answer_is_the_most_frequent_one(aokvqa):
    (row,) = aokvqa(AOKVQA)
    assert row.sample.turns[0].text == "<image>\nWhich surface?\nAnswer the question using a single word or phrase."
    assert row.sample.turns[1].text == "pony tail"
    kept = ("question_id", "choices", "correct_choice_idx", "rationales")
    assert row.sample.extra == {key: AOKVQA[key] for key in kept} | {"answers": TEN}
    assert (row.id, row.sample.images[0].name) == ("2N5s", "000000004795.jpg")


def test_a_choice_is_answered_by_its_letter(aokvqa):
    (row,) = aokvqa(AOKVQA, answers=Answers.choice)
    assert row.sample.turns[0].text == (
        "<image>\nWhich surface?\nA. barren\nB. crowded\nC. minimalist\nD. empty\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert row.sample.turns[1].text == "B"


@pytest.mark.parametrize(
    ("change", "answers"),
    [
        ({"choices": []}, Answers.choice),
        ({"correct_choice_idx": None}, Answers.choice),
        ({"correct_choice_idx": 4}, Answers.choice),
        ({"direct_answers": None}, Answers.direct),
        ({"image_id": None}, Answers.direct),
    ],
)
def test_a_question_without_its_answer_is_rejected(aokvqa, change, answers):
    bad, good = aokvqa(AOKVQA | change, AOKVQA, answers=answers)
    assert isinstance(bad.sample, Reject)
    assert not isinstance(good.sample, Reject)


def test_letters_name_choices_in_their_order():
    assert listed("Which?", ["x", "y"]) == "Which?\nA. x\nB. y"
    assert [letter(["x", "y"], right) for right in (0, 1)] == ["A", "B"]
