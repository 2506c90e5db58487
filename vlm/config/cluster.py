"""Settings of a cluster: what a job asks for, how it is put back, and what is edited for a site of one's own."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vlm.errors import Unusable


class Executor(Enum):
    """Who runs a job: SLURM, or processes on this machine."""

    slurm = "slurm"
    local = "local"


@dataclass
class SingleTaskConfig:
    """What the stages that run in one process ask for: 00 and 01 one task, 02 an array of them."""

    partition: str | None = None  # null: the cluster's
    cpus: int = 8
    mem: str = "64G"
    minutes: int = 240
    array: int = 8  # tasks that share stage 02; 1: no array

    def __post_init__(self) -> None:
        if min(self.cpus, self.minutes, self.array) < 1:
            raise Unusable("cluster.single: cpus, minutes and array are at least 1")


@dataclass
class ClusterConfig:
    """One kind of machine and how jobs get onto it: conf/cluster/, chosen with +cluster=NAME."""

    executor: Executor = Executor.slurm
    partition: str | None = None  # null: the site's default, also of the next three
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    min_nodes: int | None = None  # elastic: SLURM may give from so many up to `nodes`
    gpus_per_node: int = 0
    gpu_type: str | None = None  # as in SLURM's gres: gpu:TYPE:N
    tasks_per_node: int | None = None  # null: one for each GPU, or one
    cpus_per_gpu: int = 8  # cores of one task, which has one GPU (or none, on CPUs)
    mem: str = "0"  # of a node; 0: all it has
    minutes: int = 1440  # time limit of one job; it goes on in the next
    signal_delay_seconds: int = 300  # before the limit, jobs are told to save: at least a step and a save
    max_requeues: int = 100  # after a time limit, a preemption or a signal
    max_failures: int = 3  # times that a job is put back after a killed rank, a hang or a lost connection
    max_idle_failures: int = 1  # of these in a row without progress
    retry_seconds: int = 60  # wait after the first failure; twice as long after each further one
    setup: list[str] = field(default_factory=list)  # shell lines before the work: module load, conda activate
    environment: dict[str, str] = field(default_factory=dict)
    interface: str | None = None  # network interface of gloo and NCCL; null: their own choice
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch
    single: SingleTaskConfig = field(default_factory=SingleTaskConfig)

    @property
    def ranks_per_node(self) -> int:
        """One rank for each GPU, unless the settings say otherwise."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def __post_init__(self) -> None:
        if self.min_nodes is not None and not 1 <= self.min_nodes <= self.nodes:
            raise Unusable(f"cluster.min_nodes={self.min_nodes} is not in [1, cluster.nodes={self.nodes}]")
        if min(self.nodes, self.ranks_per_node, self.cpus_per_gpu, self.minutes) < 1 or self.gpus_per_node < 0:
            raise Unusable("cluster: nodes, tasks_per_node, cpus_per_gpu and minutes are at least 1")
        if not 0 < self.signal_delay_seconds < 60 * self.minutes:
            raise Unusable(
                f"cluster.signal_delay_seconds={self.signal_delay_seconds} is not within the {self.minutes} minutes of a job"
            )
        if self.executor is Executor.local and self.nodes > 1:
            raise Unusable(f"cluster.nodes={self.nodes}: executor=local has this machine alone")
