from dataclasses import replace

import pytest

from vlm.instruct.facts import facts_of
from vlm.instruct.prompts import Task, opening, question_for, request_of, version_of


@pytest.fixture
def task(kinds, captioned):
    facts = facts_of(captioned, 0)[0][0]
    return lambda name: Task(facts, name, kinds[name], version_of(kinds[name]))


def test_conversations_are_written_from_captions_alone_and_the_others_from_boxes_too(task):
    said = {name: request_of(task(name), 1, "m", 10, 0.7).messages for name in ("conversation", "reasoning")}
    assert said["conversation"][-1]["content"] == "Captions:\nA picture of a dog\nSomebody looks at a dog"
    assert said["reasoning"][-1]["content"].splitlines()[-1] == "dog: [0.0, 0.1, 0.225, 0.2]"
    roles = [message["role"] for message in said["reasoning"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_the_version_of_a_prompt_changes_with_what_is_told_and_not_with_how_it_is_checked(kinds):
    kind = kinds["detail"]
    assert version_of(replace(kind, max_chars=999)) == version_of(kind)
    for change in ({"prompt": "x"}, {"reads_boxes": False}, {"examples": []}, {"captions_heading": "x"}):
        assert version_of(replace(kind, **change)) != version_of(kind)


def test_the_question_of_a_text_is_chosen_by_seed_and_picture(kinds, captioned):
    tasks = [Task(facts, "detail", kinds["detail"], "v") for facts in facts_of(captioned, 0)[0]]
    chosen = [[question_for(task, seed) for task in tasks] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len({*chosen[0]}) > 2


def test_every_kind_shows_examples_in_its_own_form(kinds):
    for kind in kinds.values():
        assert opening(kind)[1]["content"].startswith(kind.captions_heading)
        assert (kind.boxes_heading in opening(kind)[1]["content"]) is kind.reads_boxes
