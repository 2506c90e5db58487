"""Requests are sent by a few workers, each until it is answered, given up, or too dear; the log says what came of it."""

import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import TypeVar

from vlm.config import EndpointRuntime
from vlm.endpoint.client import Endpoint, Failed
from vlm.endpoint.limits import Pace, Purse, Stopped
from vlm.endpoint.log import Cache, Log, Record
from vlm.endpoint.request import Request
from vlm.errors import Unusable

FEWEST_FAILURES = 3  # requests given up one after the other before the endpoint is taken to be down
MILLION = 1_000_000

Item = TypeVar("Item")


def cost_of(prompt_tokens: int, answer_tokens: int, runtime: EndpointRuntime) -> float:
    """Return the cost of a call, in the currency of the prices."""
    return (prompt_tokens * runtime.input_price + answer_tokens * runtime.output_price) / MILLION


class Asker:
    """Fills the log. One for all workers."""

    def __init__(
        self, runtime: EndpointRuntime, setting: str, tokens_of: Callable[[str], int], log: Log, cache: Cache
    ) -> None:
        """Ask the endpoint of `runtime`, which messages call `setting`; `tokens_of` counts where the endpoint does not."""
        self._runtime = runtime
        self._tokens_of = tokens_of
        self._log = log
        self._cache = cache
        self._endpoint = Endpoint(runtime, setting)
        self._pace = Pace(runtime.requests_per_minute, runtime.tokens_per_minute)
        self._purse = Purse(runtime.max_cost, log.cost)
        self._stop = threading.Event()
        self._failures = 0  # requests given up since the last answer

    def ask_all(self, items: Iterable[Item], settle: Callable[[Item], None], done: Callable[[], None]) -> None:
        """Call `settle`, which sends what an item needs, for every item, with `workers` at once; `done` after each.

        Raises Spent if the money is, Unusable if the endpoint is down; the log keeps what there is.
        """
        self._stop.clear()
        items, taking = iter(items), threading.Lock()
        nothing = object()

        def work() -> None:
            try:
                while not self._stop.is_set():
                    with taking:
                        item = next(items, nothing)
                    if item is nothing:
                        return
                    settle(item)
                    done()
            except BaseException:
                self._stop.set()  # the others end after the call that they are in
                raise

        with ThreadPoolExecutor(self._runtime.workers) as pool:
            try:
                futures = [pool.submit(work) for _ in range(self._runtime.workers)]
                problems = [future.exception() for future in futures]
            finally:
                self._stop.set()
        _raise_first(problems)

    def answered(self, request: Request, prompt_tokens: Callable[[], int]) -> bool:
        """See that the log has the answer to a request; False if it was given up."""
        if self._log.answer(request.hash) is not None:
            return True
        if self._log.refused(request.hash):
            return False
        given_up = self._log.given_up(request.hash)
        if found := self._cache.get(request.hash):
            self._log.append(entry(request, 0.0, 0.0) | found | {"cached": True})
            return True
        runtime, asked = self._runtime, prompt_tokens()
        most = cost_of(asked, request.max_tokens, runtime)
        if runtime.max_request_cost is not None and most > runtime.max_request_cost:
            error = f"it could cost {most:.6f}, more than max_request_cost={runtime.max_request_cost}"
            self._log.append(entry(request, 0.0, 0.0) | {"error": error, "reason": "too_dear"})
            return False
        for number in range(runtime.tries):
            if number:
                wait = min(runtime.backoff * 2 ** (number - 1), runtime.max_backoff)
                self._stop.wait(wait * random.uniform(0.5, 1.0))
            if self._call(request, asked, most, last=number == runtime.tries - 1):
                return True
            if self._log.given_up(request.hash) is not given_up:
                return False
        return False

    def _call(self, request: Request, prompt_tokens: int, most: float, last: bool) -> bool:
        """Call the endpoint once and log what came of it; True if that is an answer."""
        self._purse.reserve(most)
        cost = 0.0
        try:
            self._pace.wait(prompt_tokens + request.max_tokens, self._stop)
            start = time.monotonic()
            try:
                answer = self._endpoint.ask(request)
            except Failed as problem:
                cost = most if problem.may_cost else 0.0
                self._log_failure(entry(request, cost, time.monotonic() - start), problem, last)
                return False
            counted = prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens
            written = self._tokens_of(answer.text) if answer.answer_tokens is None else answer.answer_tokens
            said = {
                "answer": answer.text,
                "finish": answer.finish,
                "prompt_tokens": counted,
                "answer_tokens": written,
            }
            cost = cost_of(counted, written, self._runtime)
            self._log.append(entry(request, cost, time.monotonic() - start) | said)
            self._cache.put(request.hash, said)
            self._failures = 0
            return True
        finally:
            self._purse.settle(most, cost)

    def _log_failure(self, record: Record, problem: Failed, last: bool) -> None:
        """Log a call without an answer; a request's last one says so.

        Raises Unusable if so many requests in a row came to nothing that the endpoint must be down, or if it refused
        as many and never answered one: then the settings are wrong, not the requests.
        """
        self._pace.pause(problem.wait)
        ends = {"reason": "unanswered" if problem.passes else "refused"} if last or not problem.passes else {}
        self._log.append(record | {"error": str(problem)} | ends)
        if ends and (problem.passes or not self._log.answered):
            self._failures += 1
            if self._failures >= max(FEWEST_FAILURES, self._runtime.workers):
                raise Unusable(f"{self._failures} requests in a row had no answer; {problem}: run again to go on")


def entry(request: Request, cost: float, seconds: float) -> Record:
    """Return what every line of the log says of a call."""
    return {
        "request": request.hash,
        **request.about,
        "attempt": request.attempt,
        "model": request.model,
        "messages": request.messages,
        "cost": cost,
        "seconds": round(seconds, 3),
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    }


def _raise_first(problems: Iterable[BaseException | None]) -> None:
    """Raise what ended the work, which is not what only ended because of it."""
    for problem in problems:
        if problem is not None and not isinstance(problem, Stopped):
            raise problem
