"""A stage as a job: the same script on frozen settings, under SLURM or as processes on this machine.

Nothing is pickled and the login node imports no torch: what a job runs is a command line, and its log begins with it
(vlm/pipeline/batch.py). submitit writes the script around it and submits it.
"""

import contextlib
import getpass
import io
import os
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import submitit
from omegaconf import DictConfig
from submitit.core.utils import FailedJobError

from vlm.config import ClusterConfig, Executor, RootConfig
from vlm.errors import Unusable
from vlm.pipeline import artifact, jobs
from vlm.pipeline.artifact import Identity
from vlm.pipeline.batch import afterwards, before, by_hand, command_of, freeze, resources, resources_of, script_of
from vlm.pipeline.jobs import Job
from vlm.pipeline.provenance import now

if TYPE_CHECKING:
    from vlm.pipeline.stage import Stage  # it submits through this module


def submit(
    stage: "Stage", cfg: RootConfig, composed: DictConfig, root: Path, identity: Identity, waits_for: Mapping[str, Job]
) -> None:
    """Queue a stage whose inputs are whole or are made by the jobs `waits_for`, or run it here on several processes.

    Raises Unusable in SLURM's own words if it refuses, or if a job for another artifact is queued in its place.
    """
    with jobs.locked(root):
        folder = jobs.folder_of(root)
        if cfg.cluster.executor is Executor.local:
            run_here(stage, cfg.cluster, freeze(folder, stage.name, composed, root), root)
            return
        under_way = jobs.live(root, stage.name)
        if under_way:
            jobs.require(under_way, identity)
            print(
                f"{stage.name}: already queued as job {under_way.job_id} by {under_way.user}, {under_way.submitted}",
                flush=True,
            )
            return
        config = freeze(folder, stage.name, composed, root)
        job = queue(stage, cfg.cluster, config, root, identity, waits_for)
    after = (
        f", after {', '.join(f'{name} ({other})' for name, other in job.waits_for.items())}" if job.waits_for else ""
    )
    print(f"{stage.name}: job {job.job_id}{after}; logs in {folder / stage.name}", flush=True)


def queue(
    stage: "Stage",
    cluster: ClusterConfig,
    config: Path,
    root: Path,
    identity: Identity,
    waits_for: Mapping[str, Job],
) -> Job:
    """Submit a stage to SLURM; one that can be shared as an array, and a job that finishes what its tasks began."""
    _require_sbatch()
    job = Job(
        stage.name,
        f"{stage.name}.{root.name}.{uuid.uuid4().hex[:6]}",
        identity.key,
        identity.settings,
        identity.inputs,
        resources_of(stage, cluster),
        getpass.getuser(),
        now(),
        waits_for={name: other.job_id for name, other in waits_for.items()},
    )
    jobs.save(root, job)
    try:
        after = [other.job_id for other in waits_for.values()]
        array = cluster.single.array
        if stage.can_be_shared and array > 1:
            shares = _sbatch(stage, cluster, config, root, f"{job.name}.shares", after, array)
            job = replace(job, shares=shares)
            jobs.save(root, job)
            after = [shares]
        job = replace(job, job_id=_sbatch(stage, cluster, config, root, job.name, after))
    except Unusable:
        jobs.forget(root, stage.name)
        raise
    jobs.save(root, job)
    return job


def ask(stage: "Stage", cluster: ClusterConfig, root: Path) -> None:
    """Ask SLURM whether it would take a stage's job; nothing is queued.

    Raises Unusable in its own words if not, or if it is not here.
    """
    _require_sbatch()
    config = jobs.folder_of(root) / f"{stage.name}.frozen.yaml"
    executor = slurm_executor(stage, cluster, config, root, stage.name, [])
    text = executor._make_submission_file_text(command_of(stage, config), "")
    with _clean_environment():
        answer = subprocess.run(["sbatch", "--test-only"], input=text, capture_output=True, text=True)
    if answer.returncode:
        raise Unusable(f"SLURM refuses the job: {jobs.own_words(answer.stderr)}")


def _require_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise Unusable("sbatch is not on this machine: submit where SLURM is, or use +cluster=local2 or torchrun")


def _sbatch(
    stage: "Stage", cluster: ClusterConfig, config: Path, root: Path, name: str, after: list[str], array: int = 1
) -> str:
    folder = (config.parent / stage.name).absolute()
    executor = slurm_executor(stage, cluster, config, root, name, after, array)
    said = io.StringIO()
    try:
        with _clean_environment(), contextlib.redirect_stderr(said):
            return executor._submit_command(command_of(stage, config, array)).job_id
    except (FailedJobError, OSError) as problem:
        raise Unusable(f"SLURM refuses the job: {jobs.own_words(str(problem))}") from None
    finally:
        for left in folder.glob(".submission_file_*"):  # submitit's link to the script, or the script of a refused job
            left.unlink()


def slurm_executor(
    stage: "Stage", cluster: ClusterConfig, config: Path, root: Path, name: str, after: list[str], array: int = 1
) -> submitit.SlurmExecutor:
    """Return the submitit executor that writes and submits the batch script of a stage."""
    folder = (config.parent / stage.name).absolute()
    executor = submitit.SlurmExecutor(folder=folder)
    folder.mkdir(parents=True, exist_ok=True)  # where it is missing, a job fails without a word
    executor.update_parameters(
        job_name=name,
        account=cluster.account,
        qos=cluster.qos,
        dependency=f"afterok:{':'.join(after)}" if after else None,
        stderr_to_stdout=True,
        wckey=None,
        array_parallelism=array,
        setup=before(stage, cluster, config, array),
        teardown=afterwards(stage, cluster, folder, root),
        **resources(stage, cluster),
    )
    if array > 1:
        executor.parameters["map_count"] = array
    return executor


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """Hide what a surrounding job left in the environment; where SLURM is found must stay known."""
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def run_here(stage: "Stage", cluster: ClusterConfig, config: Path, root: Path) -> None:
    """Run a stage on processes of this machine through submitit's local executor, showing the first one's log.

    Raises Unusable if its artifact did not come about.
    """
    folder = (config.parent / stage.name).absolute()
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(
        tasks_per_node=cluster.ranks_per_node if stage.distributed else 1,
        gpus_per_node=cluster.gpus_per_node if stage.distributed else 0,
        timeout_min=cluster.minutes,
        signal_delay_s=cluster.signal_delay_seconds,
        stderr_to_stdout=True,
    )
    ranks = "RANK=$SUBMITIT_LOCAL_GLOBALID LOCAL_RANK=$SUBMITIT_LOCAL_LOCALID WORLD_SIZE=$SUBMITIT_LOCAL_NTASKS"
    meet = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={_free_port()}"
    lines = [f"export {name}={shlex.quote(value)};" for name, value in cluster.environment.items()]
    lines += [f"export {ranks} {meet};"] if stage.distributed else []
    lines += [*(f"{line};" for line in cluster.setup), "exec", shlex.join(script_of(stage, config))]
    with _clean_environment():
        job = executor._submit_command(shlex.join(["bash", "-c", " ".join(lines)]))
    log = folder / f"{job.job_id}_0_log.out"
    print(f"{stage.name}: on this machine, log in {log}\n$ {by_hand(stage, cluster, config)}", flush=True)
    _show_until_done(job, log)
    if not (root / stage.name / artifact.RECORD).is_file():
        raise Unusable(f"it did not come to its end: {log}")


def _show_until_done(job: submitit.Job, log: Path) -> None:
    """Copy a log to the terminal while its job runs; Ctrl-C ends the job too."""
    shown, done = 0, False
    while not done:
        done = job.done()
        if log.is_file():
            with log.open() as file:
                file.seek(shown)
                print(file.read(), end="", flush=True)
                shown = file.tell()
        time.sleep(0 if done else 0.2)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
