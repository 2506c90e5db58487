"""Limits that workers share: the pace of requests and tokens, and the purse."""

import threading
import time


class Stopped(Exception):
    """Another worker ended the work."""


class Spent(Exception):
    """The next request could cost more than is left."""


class Pace:
    """Spreads requests evenly, so that no window of a minute holds more of them, or of tokens, than allowed."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0  # seconds
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._free = 0.0  # when the next request may start, by the monotonic clock
        self._resume = 0.0  # and not before this
        self._lock = threading.Lock()

    def wait(self, tokens: int, stop: threading.Event) -> None:
        """Return when a request of this many tokens may start.

        Raises Stopped as soon as `stop` is set.
        """
        with self._lock:
            start = max(self._free, time.monotonic())
            self._free = start + max(self._per_request, tokens * self._per_token)
        while (left := max(start, self._paused()) - time.monotonic()) > 0:
            if stop.wait(left):
                raise Stopped
        if stop.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Let no request start for so long: the endpoint asked for it."""
        with self._lock:
            self._resume = max(self._resume, time.monotonic() + seconds)

    def _paused(self) -> float:
        with self._lock:
            return self._resume


class Purse:
    """Money spent and set aside; what is set aside for requests under way never takes the sum over the cap."""

    def __init__(self, cap: float | None, spent: float) -> None:
        self.cap = cap
        self.spent = spent
        self._aside = 0.0
        self._under_way = 0  # requests
        self._changed = threading.Condition()

    def reserve(self, cost: float) -> None:
        """Set aside the most that a request can cost, waiting for others to cost less than was set aside for them.

        Raises Spent if it does not fit though no other request is under way.
        """
        with self._changed:
            while self.cap is not None and self.spent + self._aside + cost > self.cap:
                if not self._under_way:
                    raise Spent(
                        f"{self.spent:.4f} of max_cost={self.cap} are spent and a request could cost {cost:.4f}"
                    )
                self._changed.wait()
            self._aside += cost
            self._under_way += 1

    def settle(self, reserved: float, cost: float) -> None:
        """Put the true cost in the place of what was set aside."""
        with self._changed:
            self._under_way -= 1
            self._aside = self._aside - reserved if self._under_way else 0.0  # no rounding is left behind
            self.spent += cost
            self._changed.notify_all()
