"""What a user can mend is said in one line; everything else is a bug and keeps its traceback."""


class Unusable(Exception):
    """Input or settings that cannot be used: what is wrong, where, and what to do, in one line."""

    status = 1  # of the process that ends with it


class Stopped(Unusable):
    """Work that saved because it was asked to stop; the same command goes on with it."""

    status = 3


class Hindered(Unusable):
    """Work that something outside it hinders for now, such as a lost connection; the same command goes on with it."""

    status = 75  # EX_TEMPFAIL of sysexits.h
