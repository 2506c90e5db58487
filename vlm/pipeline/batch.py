"""What a job runs and asks for, as text: the line of each task, and what the batch script does around it.

The batch script says where the ranks meet; each rank takes its number from SLURM's variables. When the ranks have
ended, the script decides whether the job is put back (vlm/pipeline/requeue.py).
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vlm.config import ClusterConfig
from vlm.pipeline.requeue import VERDICT, Limits

if TYPE_CHECKING:
    from vlm.pipeline.stage import Stage  # it submits through vlm/pipeline/cluster.py

FROZEN = """\
# The settings of one job, as they were when it was submitted.
defaults:
  - schema
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - _self_
hydra: {output_subdir: null, run: {dir: .}}
"""


def freeze(folder: Path, stage: str, composed: DictConfig, root: Path) -> Path:
    """Write the settings that a job runs on, whatever becomes of conf/ meanwhile; return their file."""
    settings = composed.copy()
    settings.cluster, settings.wait, settings.preflight = None, False, False
    settings.run = str(root.relative_to(settings.runs))  # a sweep's choice is a run of its own
    path = folder / f"{stage}.frozen.yaml"
    path.write_text(FROZEN + OmegaConf.to_yaml(settings))
    return path


def resources(stage: "Stage", cluster: ClusterConfig) -> dict[str, Any]:
    """Return what a stage asks for, as parameters of submitit's executor."""
    single, gpus = cluster.single, cluster.gpus_per_node if stage.distributed else 0
    more = {"mem": single.mem, "requeue": True, "kill-on-invalid-dep": "yes"}
    if stage.distributed:
        more |= {"mem": cluster.mem}
        more |= {"nodes": f"{cluster.min_nodes}-{cluster.nodes}"} if cluster.min_nodes else {}
        asked = {"nodes": cluster.nodes, "ntasks_per_node": cluster.ranks_per_node, "time": cluster.minutes}
    else:
        asked = {"nodes": 1, "ntasks_per_node": 1, "time": single.minutes}
    if gpus and cluster.gpu_type:
        more |= {"gpus-per-node": f"{cluster.gpu_type}:{gpus}"}
    elif gpus:
        asked |= {"gpus_per_node": gpus}
    cores = cluster.cpus_per_gpu if stage.distributed else single.cpus
    srun = [f"--cpus-per-task={cores}"]
    if "nodes" in more:  # told how many tasks, sbatch would take no more nodes than the fewest need: srun is told
        srun.append(f"--ntasks-per-node={asked.pop('ntasks_per_node')}")
        cores *= cluster.ranks_per_node
    return asked | {
        "partition": cluster.partition if stage.distributed else single.partition or cluster.partition,
        "constraint": cluster.constraint if stage.distributed or not cluster.gpus_per_node else None,
        "cpus_per_task": cores,
        "signal_delay_s": min(cluster.signal_delay_seconds, 30 * asked["time"]),
        # wait=0: the first rank is alone at the end, with the export and the hashes of large files
        "srun_args": ["--kill-on-bad-exit=1", "--wait=0", *srun],
        "additional_parameters": more | cluster.additional_parameters,
    }


def resources_of(stage: "Stage", cluster: ClusterConfig) -> str:
    """Return in a few words what a stage asks for."""
    asked = resources(stage, cluster)
    nodes = asked["additional_parameters"].get("nodes", asked["nodes"])
    gpus = asked.get("gpus_per_node") or asked["additional_parameters"].get("gpus-per-node")
    words = [f"{nodes} x {cluster.ranks_per_node} tasks" if stage.distributed else "1 task"]
    words += [f"{gpus} GPUs a node"] if gpus else []
    cores = cluster.cpus_per_gpu if stage.distributed else cluster.single.cpus
    return ", ".join([*words, f"{cores} cores each", f"{asked['time']} min"])


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


def by_hand(stage: "Stage", cluster: ClusterConfig, config: Path) -> str:
    """Return the line that does the same as a job on one machine, for a person to paste."""
    command = script_of(stage, config)
    if stage.distributed:
        ranks = cluster.nodes * cluster.ranks_per_node
        command = [command[0], "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *command[2:]]
    else:
        command.remove("-u")
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"


def before(stage: "Stage", cluster: ClusterConfig, config: Path, array: int) -> list[str]:
    """Return the lines of the batch script before the ranks start."""
    folder = shlex.quote(str((config.parent / stage.name).absolute()))
    environment = dict(cluster.environment)
    if cluster.interface:
        environment |= {"GLOO_SOCKET_IFNAME": cluster.interface, "NCCL_SOCKET_IFNAME": cluster.interface}
    meet = [
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0} * 1009) % 12000))",
    ]
    share = f' "part=$SLURM_ARRAY_TASK_ID/{array}"' if array > 1 else ""
    return [
        f"echo {shlex.quote('$ ' + by_hand(stage, cluster, config))}{share}",
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        *cluster.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        *(meet if stage.distributed else []),
        f"export {VERDICT}={folder}/${{SLURM_JOB_ID}}_verdict.txt",
        f'rm -f "${VERDICT}"',
        "trap : TERM  # so that this script outlives the ranks and can put the job back",
    ]


def afterwards(stage: "Stage", cluster: ClusterConfig, folder: Path, root: Path) -> list[str]:
    """Return the lines of the batch script after the ranks have ended: the job's status is theirs."""
    limits = [f"--{name.replace('_', '-')}={getattr(cluster, name)}" for name in Limits.__annotations__]
    python = shlex.join([sys.executable, "-m", "vlm.pipeline.requeue"])
    places = (
        f"{shlex.quote(str(folder))}/${{SLURM_JOB_ID}}_legs.jsonl {shlex.quote(str((root / stage.name).absolute()))}"
    )
    return ["status=$?", f"{python} {places} $status {' '.join(limits)}", "exit $status"]
