"""One process is a world of one; tests/train/test_loop.py has two."""

import torch

from vlm import ranks


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
