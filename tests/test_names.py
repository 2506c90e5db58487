"""Formats and scorers are names that the code below the settings lists; every stage checks all of them at its start."""

import pytest

from vlm.config import EvalConfig, EvaluationConfig, RootConfig, SourceConfig, SplitConfig, TaskConfig, TrainConfig
from vlm.errors import Unusable
from vlm.names import check_names


def sources(name: str) -> list[SourceConfig]:
    return [SourceConfig(path="a.json"), SourceConfig(path="b.json", format=name)]


@pytest.mark.parametrize(
    "place",
    [
        lambda name, cfg: setattr(cfg.data, "pretrain", SplitConfig(sources=sources(name))),
        lambda name, cfg: setattr(cfg.data, "finetune", SplitConfig(held_out=sources(name))),
        lambda name, cfg: setattr(cfg.data, "exclude", sources(name)),
        lambda name, cfg: setattr(cfg.instruct, "sources", sources(name)),
        lambda name, cfg: setattr(cfg, "eval", EvalConfig(tasks={"t": TaskConfig(sources=sources(name))})),
    ],
)
def test_a_format_that_is_not_there_is_refused_wherever_a_source_stands(place):
    cfg = RootConfig()
    place("pope", cfg)
    check_names(cfg)
    place("pop", cfg)
    with pytest.raises(Unusable, match="^data source b: there is no format pop: did you mean pope"):
        check_names(cfg)


@pytest.mark.parametrize("training", ["pretrain", "finetune"])
def test_a_scorer_that_is_not_there_is_refused_wherever_a_task_stands(training):
    cfg = RootConfig()
    cfg.eval.tasks = {"t": TaskConfig(scorer="choices")}
    with pytest.raises(Unusable, match="^task t: there is no scorer choices: did you mean choice"):
        check_names(cfg)
    cfg.eval.tasks = {"t": TaskConfig()}
    setattr(cfg, training, TrainConfig(evaluation=EvaluationConfig(tasks={"t": TaskConfig(scorer="choices")})))
    with pytest.raises(Unusable, match="^task t: there is no scorer choices"):
        check_names(cfg)
