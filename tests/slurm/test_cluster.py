"""What the tests beside this one rely on: the cluster's nodes are apart, and nothing of it outlives its tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from . import cluster
from .cluster import Cluster

pytestmark = pytest.mark.slow
MEET = """
import os, socket, time
address = (os.environ["MEET_AT"], 29000)
if os.environ["SLURM_PROCID"] == "0":
    print(socket.create_server(address).accept()[0].recv(9).decode())
else:
    time.sleep(1)
    try:
        socket.create_connection(address).send(b"met")
    except ConnectionRefusedError:  # told by status: srun ends a task's output where another task's end cuts it off
        raise SystemExit(42)
"""


def test_gpus_are_handed_out_by_number_and_recorded(slurm: Cluster):
    shown = slurm.run("srun", "-N2", "--gpus-per-node=2", "sh", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES")
    assert sorted(shown.splitlines()) == ["node1 0,1", "node2 0,1"]
    cluster.wait("its record", lambda: "gres/gpu=4" in slurm.run("sacct", "-nPX", "--format=alloctres"))


def test_two_nodes_meet_by_name_but_not_at_localhost(slurm: Cluster):
    meet = ["srun", "-N2", "-t1", "--kill-on-bad-exit=1", sys.executable, "-c", MEET]
    assert slurm.run("env", "MEET_AT=node1", *meet) == "met"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        slurm.run("env", "MEET_AT=127.0.0.1", *meet)
    assert "node2: task 1: Exited with exit code 42" in failed.value.stderr


def test_nothing_outlives_the_process_that_started_it(slurm: Cluster, tmp_path):
    script = "sleep 600 & echo ready; sleep 600"
    started = subprocess.Popen(
        [sys.executable, cluster.__file__, "srun", "-N4", "sh", "-c", script],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert started.stdout.readline() == "ready\n"
    assert alive(tmp_path)
    started.send_signal(signal.SIGKILL)
    started.wait()
    cluster.wait("its end", lambda: not alive(tmp_path))


def alive(folder: Path) -> list[str]:
    """Return the processes that have a folder in their environment or among their mounts."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (process / "environ").read_text() + (process / "mountinfo").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found
