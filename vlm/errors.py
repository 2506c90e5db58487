"""What a user can mend is said in one line; everything else is a bug and keeps its traceback."""

import difflib
import signal
import subprocess
from collections.abc import Collection


class Unusable(Exception):
    """Input or settings that cannot be used: what is wrong, where, and what to do, in one line."""

    status = 1  # of the process that ends with it


class Stopped(Unusable):
    """Work that saved because it was asked to stop; the same command goes on with it."""

    status = 3


class Hindered(Unusable):
    """Work that something outside it hinders for now, such as a lost connection; the same command goes on with it."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def require_success(done: subprocess.CompletedProcess[str], what: str) -> None:
    """Check how a program that was started for a part of the work has ended.

    Raises Hindered if it was killed, and Unusable with the last line of its complaint if it failed.
    """
    if done.returncode < 0:
        raise Hindered(f"{what}: killed by {signal.Signals(-done.returncode).name}, perhaps for its memory: run again")
    if done.returncode:
        raise Unusable(f"{what}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")


def unknown(where: str, what: str, name: str, names: Collection[str]) -> Unusable:
    """Return the refusal of a name that nothing answers to, with the nearest that something does, and all of them."""
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return Unusable(f"{where}: there is no {what} {name}: {hint}choose of {', '.join(names)}")
