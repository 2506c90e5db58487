"""Ranks: the processes that train together. One process is a world of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from vlm.errors import Hindered


def rank() -> int:
    """Return this process's number among all."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Say whether this is the one rank that prints and writes."""
    return rank() == 0


def device() -> torch.device:
    """Return the device of this rank."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def pin_threads(threads: int | None) -> None:
    """Compute with so many threads on this rank's CPU, whatever a launcher left in OMP_NUM_THREADS.

    Their number decides the order of sums, and with it the last bits of a loss. None: one where there are several
    ranks; a single process keeps torch's own choice. A rank with a GPU is left as it is.
    """
    if threads is None and world() > 1:
        threads = 1
    if threads is not None and device().type == "cpu":
        torch.set_num_threads(threads)


def sum_in_one_order(wanted: bool) -> None:
    """Choose the kernels of this rank's GPU: those that give the same bits each time, or the fastest.

    An operator that has no such kernel then raises a RuntimeError with its name. Nothing changes on a CPU.
    """
    wanted = wanted and device().type == "cuda"
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
        torch.utils.deterministic.fill_uninitialized_memory = False  # slow, and nothing here reads such memory
    torch.use_deterministic_algorithms(wanted)


def join() -> None:
    """Meet the other ranks, if there are any and they have not met; for work that trains nothing."""
    if world() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # one may be done long before another


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized() and world() > 1:
        dist.barrier()


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all ranks."""
    if dist.is_initialized() and world() > 1:
        dist.all_reduce(value)
    return value


@contextmanager
def in_contact() -> Iterator[None]:
    """Say in one line, inside the block, that another rank is gone: killed, hung, or cut off.

    Raises Hindered then. gloo reports it as a plain RuntimeError that names its own source file.
    """
    try:
        yield
    except RuntimeError as problem:
        if not isinstance(problem, dist.DistError) and "/gloo/" not in str(problem):
            raise
        raise Hindered(
            f"lost contact with another rank ({str(problem).splitlines()[0]}); run it again to go on"
        ) from problem
