"""Every setting of the pipeline: its name, its type, its default, and what must hold between settings.

The values live in conf/; here is what they may be. One root config serves all six stages, so that one
preset describes a whole run. Settings under a node named `runtime` or `deepspeed` say how the work is
done, not what comes out, so they do not count in an artifact's key; nor do those under `evaluation`, as
long as it only looks.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from vlm.config.data import Answers, Captions, DataConfig, Form, ShardRuntime, SourceConfig, SourceFormat, SplitConfig
from vlm.config.eval import EvalConfig, EvalRuntime, Scorer, TaskConfig
from vlm.config.model import ChatTemplate, Dtype, FeatureSelect, Geometry, ModelConfig, ProjectorKind
from vlm.config.train import EvaluationConfig, LearningRates, LoraConfig, Schedule, Strategy, TrainConfig, TrainRuntime

__all__ = [
    "Answers",
    "Captions",
    "ChatTemplate",
    "DataConfig",
    "Dtype",
    "EvalConfig",
    "EvalRuntime",
    "EvaluationConfig",
    "FeatureSelect",
    "Form",
    "Geometry",
    "LearningRates",
    "LoraConfig",
    "ModelConfig",
    "ProjectorKind",
    "RootConfig",
    "Schedule",
    "Scorer",
    "ShardRuntime",
    "SourceConfig",
    "SourceFormat",
    "SplitConfig",
    "Strategy",
    "TaskConfig",
    "TrainConfig",
    "TrainRuntime",
    "counts_in_key",
]

UNKEYED_NODES = frozenset({"runtime", "deepspeed"})


def counts_in_key(node: str, value: object) -> bool:
    """Say whether a node's settings change what comes out; looking at a training does so only with patience."""
    if node == "evaluation":
        return isinstance(value, dict) and value["patience"] is not None
    return node not in UNKEYED_NODES


@dataclass
class RootConfig:
    """The root config that all stages share (conf/config.yaml)."""

    run: str = MISSING  # names runs/<run>/
    runs: str = "runs"  # folder of all runs
    seed: int = 0
    cluster: Any = None  # null: work in this process
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    finetune: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


ConfigStore.instance().store(name="schema", node=RootConfig)
