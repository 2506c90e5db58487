"""Stage 04 is interrupted in every way that a cluster knows: it ends by itself, as if nothing had been."""

import os
import re
import signal
import time

import pytest

from .cluster import NODES, wait
from .conftest import Runs

pytestmark = pytest.mark.slow
STAGE = "04_finetune"
EARLIER = ["00_tokenizer", "01_assemble", "02_shard", "03_pretrain"]
SLOW = "2mbit"  # a step then takes most of a second


def requeue_it(runs: Runs, job: str) -> None:
    runs.slurm.run("scontrol", "requeue", job)


def signal_it(runs: Runs, job: str) -> None:
    runs.slurm.run("scancel", "--signal=USR2", job)


def preempt_it(runs: Runs, job: str) -> None:
    """Submit what goes before it and needs more nodes than are free."""
    runs.slurm.run("sbatch", "-purgent", "-N3", "--exclusive", "-o/dev/null", "--wrap=sleep 1")


def let_its_time_run_out(runs: Runs, job: str) -> None:
    """Shorten its limit: less than the delay of its signal is left, so this comes when SLURM looks next."""
    elapsed = runs.slurm.run("squeue", "-hO", "TimeUsed", "-j", job).strip()
    runs.slurm.run("scontrol", "update", f"jobid={job}", f"timelimit={int(elapsed.split(':')[-2]) + 1}")


def kill_a_rank(runs: Runs, job: str) -> None:
    os.kill(min(rank_of(runs, job, 1)), signal.SIGKILL)


def stop_slurmd(runs: Runs, job: str) -> None:
    """Stop it where rank 1 is, which runs on without it; SLURM takes the node for dead and starts the job elsewhere."""
    runs.slurm.stop_slurmd(next(node for node in NODES if ranks_on(runs, job, node, 1)))


INTERRUPTIONS = [stop_slurmd, let_its_time_run_out, requeue_it, signal_it, preempt_it, kill_a_rank]  # slow ones first


def ranks_on(runs: Runs, job: str, node: str, rank: int) -> list[int]:
    """Return the processes of a rank of a job on a node."""
    wanted = {"SLURM_JOB_ID": job, "RANK": str(rank)}.items()
    return [process for process, environment in runs.slurm.processes(node).items() if wanted <= environment.items()]


def rank_of(runs: Runs, job: str, rank: int) -> list[int]:
    return [process for node in NODES for process in ranks_on(runs, job, node, rank)]


@pytest.fixture(scope="module")
def two_ranks(runs: Runs, unbroken: str) -> str:
    """The name of a run whose stage 04 was made without SLURM and without a break, on two ranks."""
    runs.copy(unbroken, "two_ranks", EARLIER)
    runs.here(STAGE, "two_ranks", ranks=2)
    return "two_ranks"


def test_an_interrupted_training_goes_on_by_itself_to_the_same_end(runs: Runs, two_ranks: str):
    run, began = "interrupted", time.monotonic()
    runs.copy(two_ranks, run, EARLIER)
    code, said = runs.submit(STAGE, run, "cluster.tasks_per_node=1")
    assert code == 0, said
    job = runs.job(run, STAGE)
    with runs.slurm.slow_network(SLOW):
        for restarts, interrupt in enumerate(INTERRUPTIONS):
            begun = steps(runs, run)
            wait(f"a step after {begun}", lambda begun=begun: steps(runs, run) > begun + 3, 300)
            print(f"{time.monotonic() - began:4.0f} s  step {steps(runs, run):3}  {interrupt.__name__}", flush=True)
            interrupt(runs, job)
            wait(f"a start after {interrupt.__name__}", lambda old=restarts: restarts_of(runs, job) > old, 200)
            if interrupt is let_its_time_run_out:
                longer = ("scontrol", "update", f"jobid={job}", "timelimit=10")
                wait("a longer limit", lambda longer=longer: runs.slurm.run(*longer) == "")
    assert runs.wait(run, STAGE) == "COMPLETED", runs.log(run, STAGE)
    for node in runs.slurm.run("sinfo", "-hNo%N", "--states=down").split():
        runs.slurm.boot(node)
    assert runs.job(run, STAGE) == job
    assert runs.contents(run, STAGE) == runs.contents(two_ranks, STAGE)


def test_a_training_that_is_given_fewer_nodes_goes_on_with_the_same_batches(runs: Runs, two_ranks: str):
    run = "elastic"
    runs.copy(two_ranks, run, EARLIER)
    runs.slurm.wait_until_idle()  # else it begins at once on what is free
    with runs.slurm.slow_network(SLOW):
        code, said = runs.submit(STAGE, run, "cluster.tasks_per_node=1", "cluster.min_nodes=1")
        assert code == 0, said
        job = runs.job(run, STAGE)
        wait("step 12", lambda: steps(runs, run) > 11, 300)
        assert runs.slurm.run("squeue", "-ho%D", "-j", job) == "2"
        others = [f"nodename={','.join(NODES[1:])}"]
        runs.slurm.run("scontrol", "update", *others, "state=drain", "reason=elastic")
        runs.slurm.run("scontrol", "requeue", job)
    assert runs.wait(run, STAGE) == "COMPLETED", runs.log(run, STAGE)
    runs.slurm.run("scontrol", "update", *others, "state=resume")
    losses, whole = dict(runs.losses(run, STAGE)), dict(runs.losses(two_ranks, STAGE))
    assert runs.slurm.run("sacct", "-nPX", "--format=nnodes", "-j", job).splitlines()[-1] == "1"
    assert losses.keys() == whole.keys()
    assert losses == pytest.approx(whole, rel=1e-4)
    assert losses != whole  # two ranks and one add in another order: it was not two to the end


def steps(runs: Runs, run: str) -> int:
    """Return the last step that a training has recorded."""
    losses = runs.losses(run, STAGE)
    return losses[-1][0] if losses else 0


def restarts_of(runs: Runs, job: str) -> int:
    return int(re.search(r"Restarts=(\d+)", runs.slurm.run("scontrol", "show", "job", job))[1])
