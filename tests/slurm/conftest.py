"""Runs on the cluster, and the same runs without it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..stages.conftest import STAGES, contents
from .cluster import Cluster, Unavailable, wait

ROOT = Path(__file__).parents[2]
DISTRIBUTED = ("03_pretrain", "04_finetune", "05_eval")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
# Trainings in this process leave a launcher's variables behind; what is started here is no rank of them.
ALONE = {
    name: value
    for name, value in os.environ.items()
    if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_CONF"}
} | {"OMP_NUM_THREADS": "1"}
ON_CLUSTER = [
    "+cluster=slurm_cpu",
    "cluster.partition=main",
    "cluster.nodes=2",
    "cluster.tasks_per_node=2",
    "cluster.cpus_per_gpu=1",
    "cluster.mem=4G",
    "cluster.minutes=10",
    "cluster.signal_delay_seconds=20",
    "cluster.retry_seconds=1",
    "cluster.single.cpus=1",
    "cluster.single.mem=4G",
    "cluster.single.array=2",
]


class Runs:
    """Runs of the stages in one folder of runs, all with the same settings."""

    def __init__(self, slurm: Cluster, folder: Path, settings: list[str]) -> None:
        self.slurm = slurm
        self.folder = folder
        self.settings = settings

    def words(self, run: str, *more: str) -> list[str]:
        return [f"runs={self.folder}", f"run={run}", *self.settings, *more]

    def start(self, command: list[str]) -> subprocess.Popen:
        """Start a command on the login node."""
        return subprocess.Popen(
            self.slurm.command(*command),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ALONE,
            start_new_session=True,  # so that it can be killed with all it started
        )  # fmt: skip

    def submit(self, stage: str, run: str, *more: str, path: str | None = None) -> tuple[int, str]:
        """Submit one stage, with PATH as it is or as given; return exit status and output."""
        command = [sys.executable, f"stages/{stage}.py", *self.words(run, *ON_CLUSTER, *more)]
        process = self.start(["env", f"PATH={path}", *command] if path else command)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def start_chain(self, run: str, *more: str) -> subprocess.Popen:
        return self.start(["bash", "launch/all.sh", *self.words(run, *ON_CLUSTER, *more)])

    def submit_chain(self, run: str, *more: str) -> tuple[int, str]:
        """Submit all stages; return exit status and output."""
        process = self.start_chain(run, *more)
        output, _ = process.communicate(timeout=180)
        return process.returncode, output

    def status(self, run: str) -> str:
        """Return what launch/status.sh says of a run."""
        process = self.start(["bash", "launch/status.sh", f"runs={self.folder}", f"run={run}"])
        return process.communicate(timeout=60)[0]

    def queue(self, run: str) -> list[str]:
        """Return the names of a run's jobs that are queued or running; an array is one."""
        names = self.slurm.run("squeue", "-ho%j").splitlines()
        return [name for name in names if f".{run}." in name]

    def cancel(self, run: str) -> None:
        """Cancel what is queued or running of a run, and wait for its end."""
        for name in self.queue(run):
            self.slurm.run("scancel", f"--name={name}")
        wait("an empty queue", lambda: not self.queue(run), 60)

    def here(self, stage: str, run: str, *, ranks: int = 4) -> None:
        """Run a stage without SLURM, one that several ranks share under torchrun."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *(launcher if stage in DISTRIBUTED else []), f"stages/{stage}.py", *self.words(run)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ALONE, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr

    def copy(self, source: str, run: str, stages: list[str]) -> None:
        """Give a run the artifacts of another."""
        for stage in stages:
            shutil.copytree(self.folder / source / stage, self.folder / run / stage, copy_function=os.link)

    def job(self, run: str, stage: str) -> str:
        """Return the id of a stage's job."""
        return self.record(run, stage)["job_id"]

    def record(self, run: str, stage: str) -> dict[str, Any]:
        """Return what is recorded of a stage's submission."""
        return json.loads((self.folder / run / "jobs" / f"{stage}.json").read_text())

    def state(self, run: str, stage: str) -> str:
        """Return the state of a stage's job."""
        return self.slurm.state(self.job(run, stage))

    def wait(self, run: str, stage: str, seconds: float = 600) -> str:
        """Wait until a stage's job has ended for good, and is not merely between two starts; return its state."""
        name = self.record(run, stage)["name"]
        wait(f"{stage} of {run}", lambda: self.state(run, stage) in ENDED and name not in self.queue(run), seconds)
        return self.state(run, stage)

    def log(self, run: str, stage: str) -> str:
        """Return everything that the jobs of a stage printed."""
        logs = sorted((self.folder / run / "jobs" / stage).rglob("*_log.out"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)

    def contents(self, run: str, stage: str) -> dict[str, str]:
        """Return what of an artifact must be equal wherever it was made."""
        return contents(self.folder / run / stage)

    def losses(self, run: str, stage: str) -> list[tuple[int, float]]:
        """Return the loss of every step so far."""
        for folder in (self.folder / run / stage, self.folder / run / f"{stage}.partial"):
            if (folder / "metrics.jsonl").is_file():
                lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
                found = [json.loads(line) for line in lines if line.endswith("\n")]
                return [(line["step"], line["loss"]) for line in found if "loss" in line]
        return []


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of cluster.py, for all tests together."""
    try:
        with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
            yield cluster
    except Unavailable as reason:
        pytest.skip(f"no SLURM here: {reason}")


@pytest.fixture(scope="session")
def runs(slurm: Cluster, tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on the tiny parts whose stage 04 takes 120 steps; every step is in the metrics."""
    training = [
        "experiment=demo",
        "finetune.steps=120",
        "finetune.runtime.save_every=10",
        "finetune.runtime.log_every=1",
        "finetune.runtime.watchdog_minutes=2",
        "finetune.evaluation.every=null",
        "finetune.evaluation.keep_best=0",
        "pretrain.runtime.log_every=1",
    ]
    chosen = [word for word in tiny_settings if not word.startswith("finetune.")]
    return Runs(slurm, tmp_path_factory.mktemp("runs"), [*chosen, *training, "finetune.samples_per_step=4"])


@pytest.fixture(scope="session")
def unbroken(runs: Runs) -> str:
    """The name of a run that was made without SLURM, 03 to 05 under torchrun with four processes."""
    for stage in STAGES:
        runs.here(stage, "unbroken")
    return "unbroken"
