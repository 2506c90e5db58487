"""A run that hangs ends itself, so that a scheduler can start it again."""

import faulthandler
import os
import sys
import threading
from types import TracebackType

HUNG = 75  # exit status: EX_TEMPFAIL of sysexits.h, "try again later"


class Watchdog:
    """Ends the process with the stacks of all threads on stderr when `beat` was not called for `minutes`."""

    def __init__(self, minutes: float | None) -> None:
        """Watch from `with` on; None watches nothing."""
        self._minutes = minutes
        self._beaten = threading.Event()
        self._over = False

    def beat(self) -> None:
        """Say that a step was taken."""
        self._beaten.set()

    def __enter__(self) -> "Watchdog":
        if self._minutes is not None:
            self._thread = threading.Thread(target=self._watch, args=(self._minutes * 60,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self._over = True
        self._beaten.set()
        if self._minutes is not None:
            self._thread.join()

    def _watch(self, seconds: float) -> None:
        while self._beaten.wait(seconds):
            self._beaten.clear()
            if self._over:
                return
        print(f"no step within {self._minutes} minutes; where each thread is:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        os._exit(HUNG)  # a thread that hangs would not let an ordinary exit through
