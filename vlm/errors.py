"""What a user can mend is said in one line; everything else is a bug and keeps its traceback."""


class Unusable(Exception):
    """Input or settings that cannot be used: what is wrong, where, and what to do, in one line."""
