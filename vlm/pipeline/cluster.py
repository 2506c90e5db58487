"""A stage as a job: the same script on frozen settings, under SLURM or as processes on this machine.

Nothing is pickled and the login node imports no torch: what a job runs is a command line, and its log begins with it.
The batch script says where the ranks meet; each rank takes its number from SLURM's variables. When the ranks have
ended, the script decides whether the job is put back (vlm/pipeline/requeue.py). submitit writes and submits the script.
"""

import contextlib
import getpass
import io
import os
import shlex
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit
from omegaconf import DictConfig, OmegaConf
from submitit.core.utils import FailedJobError

from vlm.config import ClusterConfig, Executor, RootConfig
from vlm.errors import Unusable
from vlm.pipeline import artifact, jobs
from vlm.pipeline.artifact import Artifact, Identity
from vlm.pipeline.jobs import Job
from vlm.pipeline.provenance import now
from vlm.pipeline.requeue import VERDICT, Limits

if TYPE_CHECKING:
    from vlm.pipeline.stage import Stage  # it submits through this module

FROZEN = """\
# The settings of one job, as they were when it was submitted.
defaults:
  - schema
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - _self_
hydra: {output_subdir: null, run: {dir: .}}
"""


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
            _check_same(under_way, identity)
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


def freeze(folder: Path, stage: str, composed: DictConfig, root: Path) -> Path:
    """Write the settings that a job runs on, whatever becomes of conf/ meanwhile; return their file."""
    settings = composed.copy()
    settings.cluster, settings.wait, settings.preflight = None, False, False
    settings.run = str(root.relative_to(settings.runs))  # a sweep's choice is a run of its own
    path = folder / f"{stage}.frozen.yaml"
    path.write_text(FROZEN + OmegaConf.to_yaml(settings))
    return path


def queue(
    stage: "Stage",
    cluster: ClusterConfig,
    config: Path,
    root: Path,
    identity: Identity,
    waits_for: Mapping[str, Job],
) -> Job:
    """Submit a stage to SLURM; one that can be shared as an array, and a job that finishes what its tasks began."""
    if shutil.which("sbatch") is None:
        raise Unusable("sbatch is not on this machine: submit where SLURM is, or use +cluster=local2 or torchrun")
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
        setup=_before(stage, cluster, config, array),
        teardown=_afterwards(stage, cluster, folder, root),
        **_resources(stage, cluster),
    )
    if array > 1:
        executor.parameters["map_count"] = array
    return executor


def _resources(stage: "Stage", cluster: ClusterConfig) -> dict[str, Any]:
    """Return what a stage asks for, as parameters of submitit's executor."""
    single, gpus = cluster.single, 0
    more = {"mem": single.mem, "requeue": True, "kill-on-invalid-dep": "yes"}
    if stage.distributed:
        gpus = cluster.gpus_per_node
        more |= {"mem": cluster.mem}
        more |= {"nodes": f"{cluster.min_nodes}-{cluster.nodes}"} if cluster.min_nodes else {}
        asked = {"nodes": cluster.nodes, "ntasks_per_node": cluster.ranks_per_node, "time": cluster.minutes}
    else:
        gpus = min(1, cluster.gpus_per_node) if stage.uses_gpu else 0
        asked = {"nodes": 1, "ntasks_per_node": 1, "time": cluster.minutes if gpus else single.minutes}
    if gpus and cluster.gpu_type:
        more |= {"gpus-per-node": f"{cluster.gpu_type}:{gpus}"}
    elif gpus:
        asked |= {"gpus_per_node": gpus}
    like_ranks = bool(gpus) or stage.distributed
    cores = cluster.cpus_per_gpu if like_ranks else single.cpus
    return asked | {
        "partition": cluster.partition if like_ranks else single.partition or cluster.partition,
        "constraint": cluster.constraint if like_ranks or not cluster.gpus_per_node else None,
        "cpus_per_task": cores,
        "signal_delay_s": min(cluster.signal_delay_seconds, 30 * asked["time"]),
        "srun_args": ["--kill-on-bad-exit=1", "--wait=60", f"--cpus-per-task={cores}"],
        "additional_parameters": more | cluster.additional_parameters,
    }


def resources_of(stage: "Stage", cluster: ClusterConfig) -> str:
    """Return in a few words what a stage asks for."""
    asked = _resources(stage, cluster)
    nodes, tasks = asked["additional_parameters"].get("nodes", asked["nodes"]), asked["ntasks_per_node"]
    gpus = asked.get("gpus_per_node") or asked["additional_parameters"].get("gpus-per-node")
    words = [f"{nodes} x {tasks} tasks" if stage.distributed else "1 task"]
    words += [f"{gpus} GPUs a node"] if gpus else []
    return ", ".join([*words, f"{asked['cpus_per_task']} cores each", f"{asked['time']} min"])


def command_of(stage: "Stage", config: Path, array: int = 1) -> str:
    """Return what each task runs: the stage's script, with its place among the ranks from SLURM's variables.

    USR2 is ignored until the script listens to it; to a process that does not, it is deadly.
    """
    words = ["trap '' USR2;"]
    if stage.distributed:
        words.append("export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS;")
    words += ["exec", shlex.join(script_of(stage, config))]
    words += [f"part=$SLURM_ARRAY_TASK_ID/{array}"] if array > 1 else []
    return shlex.join(["bash", "-c", " ".join(words)])


def script_of(stage: "Stage", config: Path) -> list[str]:
    """Return the command line that runs a stage on frozen settings in one process."""
    script = str(Path(stage.script).resolve())
    name = config.name.removesuffix(".yaml")
    return [sys.executable, "-u", script, "--config-dir", str(config.parent.absolute()), "--config-name", name]


def by_hand(stage: "Stage", cluster: ClusterConfig, config: Path, array: int = 1) -> str:
    """Return the line that does the same as a job on one machine, for a person to paste."""
    command = script_of(stage, config)
    if stage.distributed:
        ranks = cluster.nodes * cluster.ranks_per_node
        command = [command[0], "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *command[2:]]
    else:
        command.remove("-u")
    share = [f"part=0/{array}"] if array > 1 else []
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join([*command, *share])}"


def _before(stage: "Stage", cluster: ClusterConfig, config: Path, array: int) -> list[str]:
    """Return the lines of the batch script before the ranks start."""
    folder = shlex.quote(str((config.parent / stage.name).absolute()))
    environment = dict(cluster.environment)
    if cluster.interface:
        environment |= {"GLOO_SOCKET_IFNAME": cluster.interface, "NCCL_SOCKET_IFNAME": cluster.interface}
    meet = [
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0} * 1009) % 12000))",
    ]
    return [
        f"echo {shlex.quote('$ ' + by_hand(stage, cluster, config, array))}",
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        *cluster.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        *(meet if stage.distributed else []),
        f"export {VERDICT}={folder}/${{SLURM_JOB_ID}}_verdict.txt",
        f'rm -f "${VERDICT}"',
        "trap : TERM  # so that this script outlives the ranks and can put the job back",
    ]


def _afterwards(stage: "Stage", cluster: ClusterConfig, folder: Path, root: Path) -> list[str]:
    """Return the lines of the batch script after the ranks have ended: the job's status is theirs."""
    limits = [f"--{name.replace('_', '-')}={getattr(cluster, name)}" for name in Limits.__annotations__]
    python = shlex.join([sys.executable, "-m", "vlm.pipeline.requeue"])
    places = (
        f"{shlex.quote(str(folder))}/${{SLURM_JOB_ID}}_legs.jsonl {shlex.quote(str((root / stage.name).absolute()))}"
    )
    return ["status=$?", f"{python} {places} $status {' '.join(limits)}", "exit $status"]


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """Hide what a surrounding job left in the environment; where SLURM is found must stay known."""
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def _check_same(under_way: Job, identity: Identity) -> None:
    if under_way.key != identity.key:
        differs = identity.difference(under_way.settings, under_way.inputs)
        raise Unusable(
            f"job {under_way.job_id} of {under_way.user} makes it with {differs}: "
            f"scancel {under_way.job_id} first, or choose another run="
        )


def run_here(stage: "Stage", cluster: ClusterConfig, config: Path, root: Path) -> None:
    """Run a stage on processes of this machine through submitit's local executor, showing the first one's log.

    Raises Unusable if its artifact did not come about.
    """
    folder = (config.parent / stage.name).absolute()
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(
        tasks_per_node=cluster.ranks_per_node if stage.distributed else 1,
        gpus_per_node=cluster.gpus_per_node if stage.distributed else min(cluster.gpus_per_node, stage.uses_gpu),
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


def input_of(path: Path, root: Path) -> tuple[Artifact, Job] | None:
    """Return an input that a queued or running job makes, as it will be, and that job."""
    job = jobs.live(root, path.name)
    return (Artifact(path, job.key, job.settings, job.inputs), job) if job else None
