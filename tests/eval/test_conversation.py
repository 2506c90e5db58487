from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import pipeline

from vlm.data.samples import Turn
from vlm.errors import Unusable
from vlm.eval.conversation import Writing, answer_each, pixels_of, question, stream

HOW = Writing(max_new_tokens=12)


@pytest.fixture(scope="module")
def pictures(answerer, tiny_corpus):
    files = sorted((tiny_corpus / "images").iterdir())[:3]
    return [pixels_of(answerer, file.read_bytes(), file.name) for file in files]


def test_a_streamed_answer_grows_and_ends_as_the_answer_that_is_written_at_once(answerer, pictures):
    for picture, whole in zip(pictures, answer_each(answerer, "What colour?", pictures, HOW), strict=True):
        growing = list(stream(answerer, [question("What colour?", 1)], [picture], HOW))
        assert growing[-1] == whole
        assert len(growing) > 2 and all(map(str.startswith, growing[1:], growing))


def test_earlier_turns_and_pictures_are_read(answerer, pictures):
    said = [question("What colour?", 1), Turn("assistant", "red"), question("And this?", 1)]

    def last(turns, shown):
        return list(stream(answerer, turns, shown, HOW))[-1]

    whole = last(said, pictures[:2])
    assert whole != last(said[2:], pictures[1:2])
    assert whole != last(said, [pictures[2], pictures[1]])
    assert last([question("Hello")], []) != whole


def test_sampling_depends_on_its_seed_alone(answerer, pictures):
    warm = replace(HOW, temperature=1.5, seed=3)

    def last(how):
        return list(stream(answerer, [question("What colour?", 1)], pictures[:1], how))[-1]

    assert last(warm) == last(warm)
    assert len({last(replace(warm, seed=seed)) for seed in range(4)} | {last(HOW)}) > 1


def test_an_answer_that_nobody_waits_for_is_ended(answerer, monkeypatch):
    forwards = []
    answerer.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    growing = stream(answerer, [question("Hello")], [], Writing(max_new_tokens=200, temperature=1.0))
    next(growing)
    growing.close()  # waits until the model has stopped
    assert len(forwards) < 150


@pytest.mark.parametrize("text", ["", "  ", "What is <image>?"])
def test_an_empty_question_and_a_typed_placeholder_are_refused(text):
    with pytest.raises(Unusable, match="question"):
        question(text)


def test_a_talk_that_is_longer_than_the_model_reads_is_refused_before_it_is_begun(answerer):
    with pytest.raises(Unusable, match=r"the model reads 512: begin a new one"):
        next(stream(answerer, [question("long " * 600)], [], HOW))


def test_a_file_that_is_no_picture_is_named(answerer):
    with pytest.raises(Unusable, match="a.jpg cannot be used as a picture"):
        pixels_of(answerer, b"text", "a.jpg")


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"repetition_penalty": 0.0}]
)
def test_settings_out_of_their_range_are_refused(wrong):
    with pytest.raises(Unusable):
        Writing(**wrong)


def test_a_failure_of_the_model_reaches_the_reader(answerer):
    with pytest.raises(Exception, match="size|shape|tokens"):
        list(stream(answerer, [question("Hello", 2)], [torch.zeros(3, 16, 16, dtype=torch.uint8)], HOW))


def test_a_plain_pipeline_of_transformers_gives_the_same_answer(answerer, tiny_model, tiny_corpus, pictures):
    asked = pipeline("image-text-to-text", model=str(tiny_model), device="cpu")
    for file, picture in zip(sorted((tiny_corpus / "images").iterdir()), pictures, strict=False):
        parts = [{"type": "image", "image": Image.open(file)}, {"type": "text", "text": "What colour?"}]
        said = asked(text=[{"role": "user", "content": parts}], max_new_tokens=12, return_full_text=False)
        written = list(stream(answerer, [question("What colour?", 1)], [picture], HOW))[-1]
        assert said[0]["generated_text"].strip() == written
