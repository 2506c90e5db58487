"""The life of a stage: settings and inputs checked, then one of five outcomes.

    absent                     work, then publish
    whole, same key            "up to date"
    whole, other key           refused, naming what differs
    partial, same key          go on in it
    partial, other key         refused, naming what differs

With a cluster, `work` is left to a job that runs the same script again. Torch enters only inside `work`, so a misspelt
setting or a missing input is answered at once.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vlm.config import Executor, RootConfig
from vlm.errors import Stopped, Unusable
from vlm.pipeline import artifact, jobs, preflight, requeue, sweep
from vlm.pipeline.artifact import Artifact, Identity
from vlm.pipeline.complaints import plainly
from vlm.pipeline.jobs import Job
from vlm.pipeline.settings import settings_of, typed

ALL_NODES = ("model", "data", "pretrain", "finetune", "eval")
INTERRUPTED = 130  # the status by which a shell knows Ctrl-C
_jobs: list[Path] = []  # what the jobs of this process's sweep make

Work = Callable[[RootConfig, Mapping[str, Path], Path], None]


@dataclass(frozen=True)
class Stage:
    """One numbered script: the stages it reads, the settings it reads, and its work.

    `work(cfg, inputs, out)` gets the typed settings, the folder of each input by stage, and the folder to
    write in, which holds what an interrupted run left. `distributed` work runs on every rank; any other
    runs in one process.
    """

    script: str
    reads: tuple[str, ...]
    settings: tuple[str, ...]
    work: Work
    distributed: bool = False
    estimate: preflight.Estimate | None = None  # of a training, from the inputs that are there
    concludes: bool = False  # the last stage: preflight=true ends with the run's total
    may_grow: tuple[str, ...] = ()  # settings that extend=true lets change in work already begun
    can_be_shared: bool = False  # `work` does one share of N where cfg.part says so, and what is missing where not
    needs: Callable[[RootConfig], tuple[str, ...]] | None = None  # which of `reads` these settings ask for; None: all
    given: Callable[[RootConfig], dict[str, str]] | None = None  # hashes of inputs from outside the run, by name
    when_new: str | None = None  # a setting that is not in the key, and that what is whole no longer follows

    @property
    def name(self) -> str:
        """The script's stem, which its artifact and its jobs carry too."""
        return Path(self.script).stem

    def read_by(self, cfg: RootConfig) -> tuple[str, ...]:
        """Return the stages whose artifacts these settings ask for."""
        return self.reads if self.needs is None else self.needs(cfg)

    def run(self, composed: DictConfig) -> None:
        """Bring this stage's artifact about, or say why not in one line and leave with status 1."""
        first = int(os.environ.get("RANK", "0")) == 0
        if not (self.distributed or first):
            return
        try:
            self._run(composed, first)
        except Unusable as problem:
            requeue.leave_verdict(problem)
            line = f"{self.name}: {problem}"
            if problem.status == Unusable.status:
                sys.exit(line if first else 1)
            print(line, file=sys.stderr)
            sys.exit(problem.status)
        except KeyboardInterrupt:
            if first:
                print(f"{self.name}: interrupted; run it again to go on", file=sys.stderr)
            sys.exit(INTERRUPTED)

    def foresee(self, composed: DictConfig, coming: dict[str, Identity]) -> None:
        """Refuse, before anything is queued, what a submission of all stages would refuse in the middle.

        `coming` holds what the stages before will make, or have made; this one's is added.
        Raises Unusable.
        """
        cfg = typed(composed)
        root = Path(cfg.runs) / cfg.run
        identity = self._identity(cfg, composed, {stage: coming[stage].key for stage in self.read_by(cfg)})
        coming[self.name] = identity
        if self._is_whole(cfg, root / self.name, identity):
            return
        if job := jobs.live(root, self.name):
            jobs.require(job, identity)
            return
        artifact.begun(root / self.name, identity, self._may_grow(cfg))
        self.admit(cfg, root)
        from vlm.pipeline import cluster

        cluster.ask(self, cfg.cluster, root)

    def _identity(self, cfg: RootConfig, composed: DictConfig, keys: dict[str, str]) -> Identity:
        given = self.given(cfg) if self.given else {}
        return Identity(settings_of(composed, self.settings), keys | given)

    def _is_whole(self, cfg: RootConfig, out: Path, identity: Identity) -> bool:
        """Say whether the artifact is there and stays as it is.

        Raises Unusable if it is another one.
        """
        found = artifact.load(out) if out.exists() else None
        if found is None or identity.extends(found.settings, found.inputs, self._may_grow(cfg)):
            return False
        artifact.require(out, identity)
        return True

    def _too_late(self, composed: DictConfig, out: Path) -> str:
        """Say that a whole artifact does not follow the setting `when_new`, if it was made with another value."""
        if self.when_new is None:
            return ""
        asked, was = (OmegaConf.select(one, self.when_new) for one in (composed, OmegaConf.load(out / "config.yaml")))
        change = f" with {self.when_new}={was}, and what is whole stays as it is: {self.when_new}={asked} counts in a new run="
        return change if asked != was else ""

    def _may_grow(self, cfg: RootConfig) -> tuple[str, ...]:
        return self.may_grow if cfg.extend else ()

    def _work(self, cfg: RootConfig, inputs: Mapping[str, Artifact], folder: Path) -> None:
        if not self.distributed and requeue.is_job():
            signal.signal(signal.SIGUSR2, _stop)  # a training stops by itself, at the end of a step
        self.work(cfg, {stage: found.path for stage, found in inputs.items()}, folder)

    def _run(self, composed: DictConfig, first: bool) -> None:
        cfg = typed(composed)
        base = root = Path(cfg.runs) / cfg.run
        if choice := sweep.choice_of_job():
            root = base / sweep.FOLDER / choice
            sweep.adopt(base, root, self.name, settings_of(composed, ("seed", *ALL_NODES)))
        if cfg.preflight in (True, "sweep"):
            say(first, self.preflight(cfg, root))
            return
        out = root / self.name
        inputs, waits_for = self._inputs(cfg, root)
        identity = self._identity(cfg, composed, {stage: found.key for stage, found in inputs.items()})
        if choice:
            sweep.share(base, out, identity.key)

        if self._is_whole(cfg, out, identity):
            say(first, f"{self.name}: {out} is up to date{self._too_late(composed, out)}")
            _jobs.extend([out] if choice else [])
            return
        if cfg.cluster is not None:
            artifact.begun(out, identity, self._may_grow(cfg))
            self.admit(cfg, root)
            from vlm.pipeline import cluster  # submitit enters only where there is something to submit

            cluster.submit(self, cfg, composed, root, identity, waits_for)
            return
        if cfg.part is not None:
            if not self.can_be_shared:
                raise Unusable(f"part={cfg.part}: this stage is not done in shares")
            with artifact.contribute(out, identity, cfg.part) as folder:
                self._work(cfg, inputs, folder)
            say(first, f"{self.name}: share {cfg.part} is done")
            return
        config, may_grow = OmegaConf.to_yaml(composed), self._may_grow(cfg)
        with artifact.publish(out, identity, config, first=first, may_grow=may_grow) as folder:
            say(first, f"{self.name}: working in {folder}")
            if first:
                folders = {stage: found.path for stage, found in inputs.items()}
                preflight.expect(self, cfg, folders, folder, identity.key)
            self._work(cfg, inputs, folder)
        say(first, f"{self.name}: wrote {out}")
        _jobs.extend([out] if choice else [])

    def preflight(self, cfg: RootConfig, root: Path) -> str:
        """Estimate this stage, or compare settings for it, and return what there is to say at the end.

        Raises Unusable if it cannot fit.
        """
        if cfg.preflight == "sweep":
            return preflight.sweep(self, cfg, root, ranks_of(cfg))
        said = preflight.show(self, cfg, root, ranks_of(cfg))
        return f"{said}\n{preflight.total(cfg, root)}" if self.concludes else said

    def admit(self, cfg: RootConfig, root: Path) -> None:
        """Refuse to submit what cannot fit, unless preflight=warn or off: call it before sbatch.

        Raises Unusable.
        """
        preflight.admit(self, cfg, root, ranks_of(cfg))

    def _inputs(self, cfg: RootConfig, root: Path) -> tuple[dict[str, Artifact], dict[str, Job]]:
        """Return the artifacts that this stage reads, by stage; and, on a cluster, the jobs that still make some.

        Raises Unusable, naming the stage to run, if one is neither there nor on its way.
        """
        found, waits_for = {}, {}
        queues = cfg.cluster is not None and cfg.cluster.executor is Executor.slurm
        for stage in self.read_by(cfg):
            try:
                found[stage] = artifact.load(root / stage)
            except Unusable as missing:
                if queues and (job := jobs.live(root, stage)):
                    found[stage] = Artifact(root / stage, job.key, job.settings, job.inputs)
                    waits_for[stage] = job
                    continue
                raise Unusable(f"{missing}: run  python stages/{stage}.py run={cfg.run}  first") from None
        return found, waits_for


def ranks_of(cfg: RootConfig) -> int:
    """Return how many ranks a training would have: the hardware's own number, the cluster's, or torchrun's."""
    of_cluster = cfg.cluster.nodes * cfg.cluster.ranks_per_node if cfg.cluster else None
    return cfg.hardware.devices or of_cluster or int(os.environ.get("WORLD_SIZE", "1"))


def start(main: Callable[[], None]) -> None:
    """Run a script's Hydra main function; say a composition error in one line and leave with status 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving by itself
    # There is one store; Hydra would copy it again for each group that --help lists, which takes most of a second.
    ConfigStore.__deepcopy__ = lambda store, _: store
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks, in every stage, for a package that none needs
    try:
        main()
        if _jobs and int(os.environ.get("RANK", "0")) == 0:
            print(sweep.table(_jobs))
    except (HydraException, OmegaConfBaseException) as problem:
        print(f"{Path(sys.argv[0]).stem}: {plainly(problem)}", file=sys.stderr)
        sys.exit(2)
    except YAMLError as problem:  # in a file of the user's own: it names the file, the line and the column
        print(f"{Path(sys.argv[0]).stem}: {' '.join(str(problem).split())}", file=sys.stderr)
        sys.exit(2)


def _stop(number: int, frame: object) -> None:
    raise Stopped("asked to stop; run it again to go on")


def say(first: bool, line: str) -> None:
    """Print on the first rank."""
    if first:
        print(line, flush=True)
