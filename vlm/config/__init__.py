"""Every setting of the pipeline: its name, its type, its default, and what must hold between settings.

The values live in conf/; here is what they may be. One root config serves all six stages, so that one
preset describes a whole run. Settings under a node named `runtime` or `deepspeed` say how the work is
done, not what comes out, so they do not count in an artifact's key; nor do `preview`, and those under
`evaluation` as long as it only looks.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from vlm.config.cluster import ClusterConfig, Executor, SingleTaskConfig
from vlm.config.data import (
    Answers,
    Captions,
    DataConfig,
    Form,
    ShardRuntime,
    SourceConfig,
    SplitConfig,
    Stored,
)
from vlm.config.endpoint import EndpointRuntime
from vlm.config.eval import Blind, EvalConfig, EvalRuntime, JudgeConfig, SamplingConfig, TaskConfig
from vlm.config.instruct import AnswerFormat, ExampleConfig, InstructConfig, InstructRuntime, KindConfig
from vlm.config.model import ChatTemplate, Dtype, FeatureSelect, Geometry, ModelConfig, ProjectorKind
from vlm.config.preflight import PREFLIGHT_MODES, HardwareConfig
from vlm.config.train import (
    ADAPTED,
    EvaluationConfig,
    LearningRates,
    LoraConfig,
    Parts,
    Recompute,
    Schedule,
    Strategy,
    TrainConfig,
    TrainRuntime,
)
from vlm.errors import Unusable

__all__ = [
    "ADAPTED",
    "AnswerFormat",
    "Answers",
    "Blind",
    "Captions",
    "ChatTemplate",
    "ClusterConfig",
    "DataConfig",
    "Dtype",
    "EndpointRuntime",
    "EvalConfig",
    "EvalRuntime",
    "ExampleConfig",
    "EvaluationConfig",
    "Executor",
    "FeatureSelect",
    "Form",
    "Geometry",
    "HardwareConfig",
    "InstructConfig",
    "InstructRuntime",
    "JudgeConfig",
    "KindConfig",
    "LearningRates",
    "LoraConfig",
    "ModelConfig",
    "PREFLIGHT_MODES",
    "Parts",
    "ProjectorKind",
    "Recompute",
    "RootConfig",
    "SamplingConfig",
    "Schedule",
    "ShardRuntime",
    "SingleTaskConfig",
    "SourceConfig",
    "SplitConfig",
    "Stored",
    "Strategy",
    "TaskConfig",
    "TrainConfig",
    "TrainRuntime",
    "counts_in_key",
]

UNKEYED_NODES = frozenset({"runtime", "deepspeed", "preview"})


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
    seed: int = 0  # of all that is drawn: the projector, what is held out, the order of samples, dropout
    cluster: ClusterConfig | None = None  # null: work in this process; +cluster=NAME chooses from conf/cluster/
    wait: bool = False  # with a cluster: follow the jobs until they end
    part: str | None = None  # I/N: do only the I-th (from 0) of N shares of a stage that can be shared
    preflight: Any = False  # true: only estimate; sweep: compare settings; warn, off: of a submission
    extend: bool = False  # allow a training begun with fewer epochs or steps to go on to the new number
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    instruct: InstructConfig = field(default_factory=InstructConfig)  # conf/02a_instruct.yaml
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    finetune: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)  # what preflight estimates for

    def __post_init__(self) -> None:
        if self.preflight not in PREFLIGHT_MODES:
            raise Unusable(f"preflight={self.preflight}: it is true, false, warn, sweep or off")
        share = re.fullmatch(r"(\d+)/(\d+)", self.part or "0/1")
        if not share or int(share[1]) >= int(share[2]):
            raise Unusable(f"part={self.part}: it is I/N, the I-th (from 0) of N shares")


ConfigStore.instance().store(name="schema", node=RootConfig)
