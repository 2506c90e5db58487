"""What the language model reads."""

import random

import pytest

from vlm.demo.prose import write_document
from vlm.demo.scenes import imagine, is_held_out


def test_the_language_model_reads_of_no_held_out_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr("vlm.demo.prose.imagine", lambda *given: told.append(imagine(*given)) or told[-1])
    rng = random.Random(0)
    for _ in range(200):
        write_document(rng, 2, turns=4)
    assert len(told) == 200 and not any(is_held_out(scene, 2) for scene in told)
