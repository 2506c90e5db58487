import pytest
import torch

from vlm.config import SamplingConfig
from vlm.errors import Unusable
from vlm.eval.batch import Ask
from vlm.eval.sampling import Drawn

HOT = SamplingConfig(temperature=1.5, top_p=0.9, top_k=50)


@pytest.fixture
def generate(answerer, held_out, questions):
    asks = [Ask(question, question.prompt, question.own) for question in questions[:16]]

    def of(size, sampling, seed=3):
        batches = [answerer.collate(held_out, asks[at : at + size]) for at in range(0, len(asks), size)]
        return [ids for batch in batches for ids in answerer.generate(batch, 6, sampling, seed)]

    return of


def test_what_is_drawn_depends_on_seed_and_question_and_not_on_the_batch(generate):
    drawn = generate(7, HOT)
    assert generate(1, HOT) == drawn != generate(7, SamplingConfig())
    assert generate(7, HOT, seed=4) != drawn


def test_cold_enough_it_is_the_most_probable_one(generate):
    assert generate(7, SamplingConfig(temperature=1e-4)) == generate(7, SamplingConfig())


def test_tokens_are_drawn_as_often_as_the_temperature_says():
    scores = torch.tensor([[0.0, 1.0, 2.0, -9.0]])
    counts = torch.zeros(4)
    drawn = Drawn(SamplingConfig(temperature=2.0, top_k=3), seed=0)
    for number in range(4000):
        counts[drawn(scores, [f"q{number}"], 0).argmax()] += 1
    expected = torch.softmax(torch.tensor([0.0, 0.5, 1.0]), 0)
    assert counts[3] == 0
    torch.testing.assert_close(counts[:3] / 4000, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(Unusable, match="temperature is not negative"):
        SamplingConfig(**wrong)
