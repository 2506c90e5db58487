import io

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vlm.config import SamplingConfig, TaskConfig
from vlm.eval.answer import GREEDY, answer_all
from vlm.eval.batch import Ask
from vlm.eval.tasks import swapped_pictures

MAX_NEW_TOKENS = 8


TASK = TaskConfig(max_new_tokens=MAX_NEW_TOKENS)


def own(questions):
    return [Ask(question, question.prompt, question.own) for question in questions]


def generate(answerer, split, asked, size):
    batches = [answerer.collate(split, asked[at : at + size]) for at in range(0, len(asked), size)]
    return [ids for batch in batches for ids in answerer.generate(batch, MAX_NEW_TOKENS)]


def answer(answerer, split, questions, path, size=7):
    return answer_all(answerer, split, own(questions), path, TASK, seed=0, batch_size=size, label="test")


@pytest.fixture(scope="module")
def alone(answerer, held_out, questions):
    return generate(answerer, held_out, own(questions), 1)


@pytest.mark.parametrize("size", [7, 32])
def test_batched_answers_equal_answers_one_at_a_time(answerer, held_out, questions, alone, size):
    assert {len(question.pictures) for question in questions} == {0, 1, 2}
    assert generate(answerer, held_out, own(questions), size) == alone


def test_answers_to_questions_without_pictures_equal_those_among_pictures(answerer, held_out, questions, alone):
    bare = [(question, ids) for question, ids in zip(questions, alone, strict=True) if not question.pictures]
    assert generate(answerer, held_out, own([question for question, _ in bare]), 32) == [ids for _, ids in bare]


def test_the_pictures_make_a_difference(answerer, held_out, questions, alone):
    swapped = [
        Ask(question, question.prompt, places)
        for question, places in zip(questions, swapped_pictures(questions, 0), strict=True)
    ]
    assert generate(answerer, held_out, swapped, 32) != alone


def test_answers_equal_those_of_plain_transformers(answerer, held_out, questions, alone, tiny_model):
    model = LlavaForConditionalGeneration.from_pretrained(tiny_model, dtype=torch.float32)
    processor = LlavaProcessor.from_pretrained(tiny_model)
    picture = Image.open(io.BytesIO(held_out.read(0).pictures[0]))
    messages = [{"role": "user", "content": f"<image>\n{questions[0].text}"}]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    assert inputs.input_ids[0].tolist() == questions[0].prompt.tolist()
    written = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    assert written[0, inputs.input_ids.shape[1] :].tolist()[: len(alone[0])] == alone[0]


def test_an_answer_ends_before_the_end_of_the_turn(answerer, held_out, questions, alone, monkeypatch):
    ending = alone[0][2]
    monkeypatch.setattr(answerer, "stop_ids", answerer.stop_ids | {ending})
    stopped = generate(answerer, held_out, own(questions), 7)
    assert stopped == [ids[: ids.index(ending)] if ending in ids else ids for ids in alone]


def test_the_template_s_own_end_of_turn_stops_an_answer(answerer):
    tokenizer = answerer.chat.tokenizer
    assert answerer.stop_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_killed_evaluation_ends_with_the_same_bytes(answerer, held_out, questions, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    expected = answer(answerer, held_out, questions, whole)
    with monkeypatch.context() as patch:
        texts = iter(range(17))  # in the middle of the third batch

        def text_or_death(ids):
            if next(texts, None) is None:
                raise KeyboardInterrupt
            return answerer.chat.tokenizer.decode(ids, skip_special_tokens=True).strip()

        patch.setattr(answerer, "text", text_or_death)
        with pytest.raises(KeyboardInterrupt):
            answer(answerer, held_out, questions, killed)
    assert killed.read_bytes().count(b"\n") == 14  # the whole batches before it
    with killed.open("ab") as handle:
        handle.write(b'{"question_id": "q3')
    assert answer(answerer, held_out, questions, killed) == expected
    assert killed.read_bytes() == whole.read_bytes()


def test_nothing_is_answered_twice(answerer, held_out, questions, tmp_path, monkeypatch):
    path = tmp_path / "task.jsonl"
    expected = answer(answerer, held_out, questions, path)
    monkeypatch.setattr(answerer, "generate", lambda *batch: pytest.fail("answered again"))
    assert answer(answerer, held_out, questions, path) == expected


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(temperature=1.5, top_p=0.9)])
def test_what_is_left_to_transformers_is_answered_alike(answerer, held_out, questions, monkeypatch, sampling):
    batch = answerer.collate(held_out, own(questions[:16]))
    written = answerer.generate(batch, MAX_NEW_TOKENS, sampling)
    monkeypatch.setattr(answerer, "is_plain", False)
    assert answerer.generate(batch, MAX_NEW_TOKENS, sampling) == written
