import dataclasses
import json
from collections import Counter

import pytest

from vlm.config import Form, SourceConfig, TaskConfig
from vlm.errors import Unusable
from vlm.eval.tasks import open_task, read_questions, swapped_pictures


def test_the_prompt_is_everything_before_the_last_answer(questions, held_out, answerer):
    for question in questions:
        stored = held_out.read(question.sample)
        encoded = answerer.chat.encode(stored.sample.turns, len(stored.pictures), Form.chat, 10_000)
        ids = encoded.ids.tolist()
        asked = question.prompt.tolist()
        answer = answerer.chat.tokenizer.encode(question.reference, add_special_tokens=False)
        assert ids[: len(asked)] == asked
        assert ids[len(asked) : len(asked) + len(answer)] == answer
        assert encoded.is_target[len(asked) :].sum() == len(answer) + 1


def test_a_question_carries_the_id_category_and_text_of_its_sample(questions):
    single, double = questions[0], questions[2]
    assert (single.id, single.category, single.text) == ("q0", "colour", "What colour is square 0?")
    assert (double.id, double.category, double.text) == ("q2", "existence", "Is there a circle?")


def test_the_limit_keeps_the_first_questions(questions, held_out, answerer):
    first = read_questions("test", TaskConfig(limit=3), held_out, answerer.chat)
    assert [question.id for question in first] == [question.id for question in questions[:3]]


def test_no_question_at_all_is_refused(held_out, answerer):
    with pytest.raises(Unusable, match="task test: .* leaves no question"):
        read_questions("test", TaskConfig(limit=0), held_out, answerer.chat)


def test_two_questions_of_one_id_are_refused_by_name(held_out, answerer, monkeypatch):
    stored = held_out.read(0)
    monkeypatch.setattr(held_out, "read", lambda number: stored)
    with pytest.raises(Unusable, match="task test: two samples of .* have the question_id q0"):
        read_questions("test", TaskConfig(), held_out, answerer.chat)


def test_without_question_id_and_category_the_sample_id_and_all_stand_in(held_out, answerer, monkeypatch):
    stored = held_out.read(0)
    bare = dataclasses.replace(stored, sample=dataclasses.replace(stored.sample, extra={}))
    monkeypatch.setattr(held_out, "read", lambda number: bare)
    (question,) = read_questions("test", TaskConfig(limit=1), held_out, answerer.chat)
    assert (question.id, question.category) == ("held_out_0/0", "all")


def test_no_question_is_swapped_onto_a_picture_of_its_own(questions):
    digest = {
        place: name for question in questions for place, name in zip(question.own, question.pictures, strict=True)
    }
    for question, places in zip(questions, swapped_pictures(questions, 0), strict=True):
        assert len(places) == len(question.pictures)
        assert not {digest[place] for place in places} & set(question.pictures)


def test_swapping_shows_each_picture_as_often_as_before(questions):
    before = Counter(place for question in questions for place in question.own)
    assert Counter(place for places in swapped_pictures(questions, 0) for place in places) == before


def test_the_swap_depends_on_the_seed_alone(questions):
    assert swapped_pictures(questions, 0) == swapped_pictures(questions, 0)
    assert swapped_pictures(questions, 0) != swapped_pictures(questions, 1)


@pytest.mark.parametrize("shared", range(8))
def test_a_picture_that_many_share_is_kept_no_more_often_than_it_must(make_question, shared):
    asked = [make_question(i, ("same",) if i < shared else (f"other{i}",)) for i in range(8)]
    swapped = swapped_pictures(asked, 0)
    kept = sum(
        asked[places[0][0]].pictures == question.pictures for question, places in zip(asked, swapped, strict=True)
    )
    assert kept == max(0, 2 * shared - 8)


def test_questions_without_pictures_are_left_without(make_question):
    assert swapped_pictures([make_question(0), make_question(1)], 0) == [(), ()]


def test_without_its_pictures_a_question_is_the_same_but_for_their_tokens(questions, answerer):
    for question in questions:
        if not question.pictures:
            assert question.blind_prompt is None
            continue
        image = answerer.chat.image_id
        assert image in question.prompt and image not in question.blind_prompt
        words = answerer.chat.tokenizer.decode(question.blind_prompt)
        assert words == answerer.chat.tokenizer.decode(question.prompt[question.prompt != image]).replace(
            "user\n\n", "user\n", 1
        ).replace("user\n\n", "user\n", 1)


def test_captions_of_one_picture_are_one_question(tiny_corpus, answerer, tmp_path):
    captions = [{"id": i, "image_id": i // 2, "caption": f"caption {i}"} for i in range(4)]
    pictures = [{"id": i, "file_name": name} for i, name in enumerate(("00.jpg", "01.png"))]
    (tmp_path / "captions.json").write_text(json.dumps({"images": pictures, "annotations": captions}))
    source = SourceConfig(
        path=str(tmp_path / "captions.json"), images=str(tiny_corpus / "images"), format="coco_captions"
    )
    task = TaskConfig(sources=[source], scorer="captions")
    asked = read_questions("coco", task, open_task("coco", task, None, 0), answerer.chat)
    assert [(one.id, one.references) for one in asked] == [
        ("0", ("caption 0", "caption 1")),
        ("1", ("caption 2", "caption 3")),
    ]
