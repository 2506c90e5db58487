"""The progress bar of a split: samples a second, and the time left as soon as it is known how many there are.

Corpora do not say how many rows they have. They are gone through once more, beside the work, by a process that takes
what time the others leave.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from tqdm import tqdm

from vlm.data.shard import end_with
from vlm.errors import Unusable

POLITE = 10  # niceness of the counting: a tenth of a worker's claim to a core


@contextmanager
def progress(title: str, count: Callable[[], int]) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that is told of samples read, and of those rejected; `count` says how many there will be."""
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    counting = fork.Process(target=_send, args=(os.getpid(), count, sending), daemon=True)
    counting.start()
    rejected = 0
    try:
        with tqdm(desc=title, unit=" samples", unit_scale=True, dynamic_ncols=True) as bar:

            def tell(read: int, bad: int) -> None:
                nonlocal rejected
                rejected += bad
                if bar.total is None and receiving.poll():
                    bar.total = receiving.recv()
                bar.set_postfix(rejected=rejected, refresh=False)
                bar.update(read)

            yield tell
    finally:
        counting.kill()
        counting.join()


def _send(parent: int, count: Callable[[], int], to: Connection) -> None:
    end_with(parent)
    os.nice(POLITE)
    try:
        to.send(count())
    except Unusable:
        return  # whoever reads the rows meets the same fault, and says it
