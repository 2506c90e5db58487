import json
from dataclasses import replace

import pytest
import torch

from vlm.config import EvaluationConfig, TaskConfig
from vlm.errors import Unusable
from vlm.eval.answer import Answerer
from vlm.eval.run import ask
from vlm.eval.score import headline
from vlm.eval.suite import Suite

TASK = TaskConfig(limit=8, max_new_tokens=4, blind=[])


@pytest.fixture
def suite(tiny_model, tiny_shards, tmp_path):
    cfg = EvaluationConfig(every=1, answers=8, tasks={"questions": replace(TASK, limit=None)}, shown=3)
    return Suite.of(cfg, 0, base=tiny_model, shards=tiny_shards, out=tmp_path)


@pytest.fixture
def model(tiny_model):
    return Answerer(tiny_model).model


def test_a_model_that_trains_gets_the_score_that_stage_05_would_give_it(suite, model, answerer, held_out, tmp_path):
    found = suite(model, 2)
    expected = headline(ask("questions", TASK, held_out, answerer, 0, tmp_path / "05", 64).score)
    assert found["questions/accuracy"] == expected["score"]
    assert [found["questions/low"], found["questions/high"]] == expected["interval"]
    written = json.loads((tmp_path / "samples/step_000002.json").read_text())["questions"]
    predicted = map(json.loads, (tmp_path / "05/predictions/questions.jsonl").read_text().splitlines())
    assert [(one["id"], one["answer"]) for one in written] == [(p["question_id"], p["answer"]) for p in predicted]


def test_it_asks_the_weights_of_the_moment(suite, model, tmp_path):
    suite(model, 1)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    suite(model, 2)
    first, second = ((tmp_path / f"samples/step_00000{step}.json").read_text() for step in (1, 2))
    assert first != second
    assert "latest, step 2</th><th>step 1</th>" in (tmp_path / "samples.html").read_text()


def test_looks_that_a_killed_run_left_behind_are_not_shown_before_they_come_again(suite, model, tmp_path):
    suite(model, 9)
    suite(model, 4)
    assert "step 9" not in (tmp_path / "samples.html").read_text()


def test_without_tasks_nothing_is_asked_and_a_missing_split_is_named(tiny_model, tiny_shards, tmp_path):
    def of(cfg: EvaluationConfig) -> Suite | None:
        return Suite.of(cfg, 0, base=tiny_model, shards=tiny_shards, out=tmp_path)

    assert of(EvaluationConfig(every=1)) is None
    assert of(EvaluationConfig(answers=8)) is None  # no look is ever due
    with pytest.raises(Unusable, match="scorer=none gives no score"):
        of(EvaluationConfig(every=1, answers=1, tasks={"q": TaskConfig(scorer="none")}))
    with pytest.raises(Unusable, match="absent holds no shards"):
        of(EvaluationConfig(every=1, answers=1, tasks={"q": TaskConfig(split="absent")}))
