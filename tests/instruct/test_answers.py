from dataclasses import replace

import pytest

from vlm.data.samples import Reject, Turn
from vlm.instruct.answers import turns_of

LONG = "It stands on the left of the lamp and that is where the light of the sun comes from, so it is bright."


def reason_of(answer: str, kind, finish: str | None = "stop") -> str:
    with pytest.raises(Reject) as found:
        turns_of(answer, finish, kind, "What is there?")
    return found.value.code


def test_marks_divide_an_answer_into_turns(kinds):
    answer = (
        "Question: What is it?\nAnswer: It is a red\nlamp on a table.\n\nQuestion:Is it lit?\n Answer: Yes, it is lit."
    )
    assert turns_of(answer, "stop", kinds["conversation"], "") == (
        Turn("user", "What is it?"),
        Turn("assistant", "It is a red\nlamp on a table."),
        Turn("user", "Is it lit?"),
        Turn("assistant", "Yes, it is lit."),
    )


def test_a_text_answers_the_question_that_it_was_given(kinds):
    said = f"There is a lamp in the picture. {LONG}"
    assert turns_of(f" {said}\n", "stop", kinds["detail"], "What is there?") == (
        Turn("user", "What is there?"),
        Turn("assistant", said),
    )


@pytest.mark.parametrize(
    ("reason", "answer"),
    [
        ("format", " \n"),
        ("format", f"Here you are.\nQuestion: Why is it so?\nAnswer: {LONG}"),
        ("format", LONG),
        ("format", f"Question:\nAnswer: {LONG}"),
        ("format", f"Question: Why <image>?\nAnswer: {LONG}"),
        ("format", f"Question: Why?\nAnswer: {LONG} \ufffd"),
        ("roles", f"Question: Why?\nQuestion: Why not?\nAnswer: {LONG}"),
        ("roles", f"Answer: {LONG}\nQuestion: Why?"),
        ("roles", f"Question: Why?\nAnswer: {LONG}\nQuestion: What else?"),
        ("length", f"Question: Why?\nAnswer: {LONG}\nQuestion: Why not?\nAnswer: {LONG}"),
        ("length", "Question: Why?\nAnswer: Because of it."),
        ("language", f"Question: 为什么？\nAnswer: {'因为天气很好所以大家都在公园里散步。' * 8}"),
        ("language", f"Question: ¿Por qué?\nAnswer: {'Porque las casas viejas tienen techos rojos muy altos. ' * 3}"),
        ("mentions", f"Question: Why?\nAnswer: The captions say it. {LONG}"),
        ("mentions", f"Question: Why?\nAnswer: It is at [0.25, 0.5, 0.75, .812] in it. {LONG}"),
        ("mentions", f"Question: What do the bounding boxes show?\nAnswer: {LONG}"),
        ("refusal", "I'm sorry, but I can't help with that."),
        ("refusal", f"Question: Why?\nAnswer: As an AI, I do not know. {LONG}"),
    ],
)
def test_a_bad_answer_has_a_reason(kinds, reason, answer):
    assert reason_of(answer, kinds["reasoning"]) == reason


@pytest.mark.parametrize("finish", ["length", "content_filter", None])
def test_an_answer_that_did_not_end_by_itself_is_cut_off(kinds, finish):
    assert reason_of(f"Question: Why?\nAnswer: {LONG}", kinds["reasoning"], finish) == "cut_off"


def test_the_examples_of_every_kind_pass_its_own_checks(kinds):
    for kind in kinds.values():
        for example in kind.examples:
            assert turns_of(example.answer, "stop", kind, "What is there?")


def test_a_kind_may_be_in_another_language(kinds):
    chinese = replace(kinds["reasoning"], question_mark="问：", answer_mark="答：", scripts=["CJK"], common_words=[])
    turns = turns_of(f"问：为什么？\n答：{'因为天气很好，所以大家都在公园里散步。' * 8}", "stop", chinese, "")
    assert turns[0] == Turn("user", "为什么？")
