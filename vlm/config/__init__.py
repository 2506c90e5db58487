"""Every setting of the pipeline: its name, its type, its default, and what must hold between settings.

The values live in conf/; here is what they may be. One root config serves all six stages, so that one
preset describes a whole run. Settings under a node named `runtime` or `deepspeed` say how the work is
done, not what comes out, so they do not count in an artifact's key.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from vlm.config.data import Answers, Captions, DataConfig, Form, ShardRuntime, SourceConfig, SourceFormat, SplitConfig
from vlm.config.eval import EvalConfig, EvalRuntime, Scorer, TaskConfig
from vlm.config.model import ChatTemplate, Dtype, FeatureSelect, Geometry, ModelConfig, ProjectorKind
from vlm.config.train import LearningRates, LoraConfig, Recompute, Schedule, Strategy, TrainConfig, TrainRuntime

__all__ = [
    "Answers",
    "Captions",
    "ChatTemplate",
    "DataConfig",
    "Dtype",
    "EvalConfig",
    "EvalRuntime",
    "FeatureSelect",
    "Form",
    "Geometry",
    "LearningRates",
    "LoraConfig",
    "ModelConfig",
    "ProjectorKind",
    "Recompute",
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
    "UNKEYED_NODES",
]

UNKEYED_NODES = frozenset({"runtime", "deepspeed"})


@dataclass
class RootConfig:
    """The root config that all stages share (conf/config.yaml)."""

    run: str = MISSING  # names runs/<run>/
    runs: str = "runs"  # folder of all runs
    seed: int = 0
    cluster: Any = None  # null: work in this process
    extend: bool = False  # allow a training begun with fewer epochs or steps to go on to the new number
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    finetune: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


ConfigStore.instance().store(name="schema", node=RootConfig)
