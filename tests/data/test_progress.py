"""The bar says how much is left as soon as that is known, and its counting leaves nothing behind."""

import multiprocessing
import time

from vlm.data.progress import progress
from vlm.errors import Unusable


def test_the_time_left_is_shown_once_the_rows_are_counted(capfd):
    with progress("split", lambda: 40) as tell:
        tell(10, 1)
        while "/40" not in (said := capfd.readouterr().err):
            tell(0, 0)
            time.sleep(0.11)  # the bar is drawn ten times a second at most
        tell(10, 0)
    assert "rejected=1" in said and "samples/s" in said
    assert "20.0/40.0" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_a_corpus_that_cannot_be_counted_is_no_fault_of_the_bar(capfd):
    def broken() -> int:
        raise Unusable("the JSON is cut")

    with progress("split", broken) as tell:
        tell(10, 0)
    assert "Traceback" not in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_work_that_ends_first_does_not_wait_for_the_count():
    began = multiprocessing.get_context("fork").Event()

    def endless() -> int:
        began.set()
        time.sleep(3600)
        return 0

    with progress("split", endless) as tell:
        assert began.wait(60)
        tell(10, 0)
    assert not multiprocessing.active_children()
