"""One process is a world of one; tests/train/test_loop.py has two."""

import os
import subprocess
import sys

import pytest
import torch

from vlm import ranks
from vlm.errors import Hindered


def test_without_a_launcher_this_process_is_first_and_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.world(), ranks.first()) == (0, 1, True)
    ranks.barrier()
    assert ranks.sum_over_ranks(torch.tensor(3)) == 3


def test_the_launcher_says_who_is_first(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not ranks.first()


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ranks.device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("ranks_in_all", "asked", "expected"), [("4", None, 1), ("4", 2, 2), ("1", None, 3), ("1", 2, 2)]
)
def test_threads_are_those_of_the_settings_whatever_the_launcher_left(monkeypatch, ranks_in_all, asked, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", ranks_in_all)
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # as OMP_NUM_THREADS=3 does
    try:
        ranks.pin_threads(asked)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


PAIR = """
import os, signal, sys, torch, torch.distributed as dist
from vlm import ranks
from vlm.errors import Hindered
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=ranks.rank(), world_size=2)
try:
    with ranks.in_contact():
        ranks.sum_over_ranks(torch.ones(1))
        if ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.sum_over_ranks(torch.ones(1))
except Hindered as problem:
    print(problem, flush=True)
    os._exit(problem.status)
"""


def test_a_rank_whose_partner_is_killed_says_so_and_asks_to_be_run_again(tmp_path):
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, str(tmp_path / "meet")],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = pair[0].communicate(timeout=120)[0]
    assert pair[0].returncode == Hindered.status
    assert said.startswith("lost contact with another rank (") and said.count("\n") == 1
    assert pair[1].wait() == -9


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="out of memory"), ranks.in_contact():
        raise RuntimeError("out of memory")
