"""All stages at once: each is queued after those it reads, whether these are whole or only on their way."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from vlm.config import Executor
from vlm.errors import Unusable
from vlm.pipeline import follow, jobs
from vlm.pipeline.artifact import Identity
from vlm.pipeline.settings import typed
from vlm.pipeline.stage import Stage


def submit_all(stages: Sequence[Stage], composed: DictConfig) -> None:
    """Submit what is not whole yet, print the table of jobs, and leave with status 0, or with theirs where wait=true.

    Another submitter of the same run waits meanwhile, and then finds every stage queued.
    """
    try:
        cfg = typed(composed)
        root = Path(cfg.runs) / cfg.run
        if cfg.cluster is None:
            raise Unusable("no cluster is chosen: give +cluster=NAME, or run launch/all.sh without it")
        queues = cfg.cluster.executor is Executor.slurm
        with jobs.locked(root):
            if queues:
                _foresee(stages, composed)
                composed.preflight = "off"  # it was looked at
            for stage in stages:
                stage.run(composed)
            submitted = jobs.load_all(root) if queues else []
        if submitted:
            sys.exit(show(root, wait=cfg.wait))
    except Unusable as problem:
        sys.exit(f"submit: {problem}")


def _foresee(stages: Sequence[Stage], composed: DictConfig) -> None:
    """Leave with status 1 and the reason, with nothing queued, if a stage would be refused."""
    coming: dict[str, Identity] = {}
    for stage in stages:
        try:
            stage.foresee(composed, coming)
        except Unusable as problem:
            sys.exit(f"{stage.name}: {problem}; nothing was queued")


def show(root: Path, *, wait: bool) -> int:
    """Print the table, and how to look at it again."""
    status = follow.show(root, wait=wait)
    if not wait:
        print(follow.how_to(root))
    return status
