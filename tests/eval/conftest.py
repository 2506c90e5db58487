"""The tiny model, loaded once, and the questions of the tiny held-out split."""

from pathlib import Path

import numpy as np
import pytest

from vlm.config import TaskConfig
from vlm.data.index import Split
from vlm.eval.answer import Answerer
from vlm.eval.question import Question
from vlm.eval.results import Answered, Unseen
from vlm.eval.tasks import read_questions


@pytest.fixture(scope="session")
def answerer(tiny_model: Path) -> Answerer:
    return Answerer(tiny_model)


@pytest.fixture(scope="session")
def held_out(tiny_shards: Path) -> Split:
    return Split(tiny_shards / "finetune_held_out")


@pytest.fixture(scope="session")
def questions(answerer: Answerer, held_out: Split) -> list[Question]:
    return read_questions("test", TaskConfig(), held_out, answerer.chat)


@pytest.fixture
def make_question():
    """Make a question that needs no split."""

    def make(number: int, pictures: tuple[str, ...] = (), category: str = "all", reference: str = "yes") -> Question:
        return Question(
            f"q{number}",
            category,
            "Is it?",
            reference,
            number,
            np.arange(3, dtype=np.int32),
            pictures,
            references=(reference,),
        )

    return make


@pytest.fixture
def answered(questions: list[Question]) -> list[Answered]:
    """The tiny questions, every third one answered right."""
    return [
        Answered(
            question,
            question.reference if i % 3 == 0 else f"mistake {i % 2}",
            float(i % 3 == 0),
            blind={"shuffled": Unseen("blind", 0.0, question.own)},
        )
        for i, question in enumerate(questions)
    ]
