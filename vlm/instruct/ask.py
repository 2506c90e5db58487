"""All tasks are asked for by a few workers, each request until it is answered, given up, or too dear.

What becomes of a task depends on the log alone: first the log is filled, then it is read (`outcome`).
"""

import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

from vlm.config import InstructConfig
from vlm.data.samples import Reject, Turn
from vlm.errors import Unusable
from vlm.instruct.answers import turns_of
from vlm.instruct.endpoint import Endpoint, Failed
from vlm.instruct.estimate import Tokens, cost_of
from vlm.instruct.limits import Pace, Purse, Stopped
from vlm.instruct.log import Cache, Log, Record
from vlm.instruct.prompts import Request, Task, question_for, request_of

ATTEMPTS = (1, 2)  # a bad answer is asked for once more
FEWEST_FAILURES = 3  # requests given up one after the other before the endpoint is taken to be down


def request_for(task: Task, attempt: int, cfg: InstructConfig) -> Request:
    """Return the request for an attempt at a task under these settings."""
    return request_of(task, attempt, str(cfg.model), cfg.max_tokens, cfg.temperature)


def outcome(task: Task, log: Log, cfg: InstructConfig, seed: int) -> tuple[Turn, ...] | Reject | None:
    """Return what the log makes of a task: its turns, why it has none, or None if it was not asked to the end.

    An unanswered request is asked again when the stage is, so it is not the end of a task here.
    """
    reject = None
    for attempt in ATTEMPTS:
        request = request_for(task, attempt, cfg)
        record = log.answer(request.hash)
        if record is None:
            given_up = log.given_up(request.hash)
            return Reject(given_up["reason"], given_up["error"]) if given_up else None
        try:
            question = question_for(task, seed) if task.kind.questions else ""
            return turns_of(record["answer"], record["finish"], task.kind, question)
        except Reject as reason:
            reject = reason
    return reject


class Asker:
    """Fills the log. One for all workers."""

    def __init__(self, cfg: InstructConfig, seed: int, tokens: Tokens, log: Log, cache: Cache) -> None:
        self._cfg = cfg
        self._seed = seed
        self._tokens = tokens
        self._log = log
        self._cache = cache
        self._endpoint = Endpoint(cfg.runtime)
        self._pace = Pace(cfg.runtime.requests_per_minute, cfg.runtime.tokens_per_minute)
        self._purse = Purse(cfg.runtime.max_cost, log.cost)
        self._stop = threading.Event()
        self._failures = 0  # requests given up since the last answer

    def ask_all(self, tasks: Iterable[Task], done: Callable[[], None]) -> None:
        """Ask for every task with `runtime.workers` at once; call `done` after each.

        Raises Spent if the money is, Unusable if the endpoint is down; the log keeps what there is.
        """
        tasks, taking = iter(tasks), threading.Lock()

        def work() -> None:
            try:
                while not self._stop.is_set():
                    with taking:
                        task = next(tasks, None)
                    if task is None:
                        return
                    self._settle(task)
                    done()
            except BaseException:
                self._stop.set()  # the others end after the call that they are in
                raise

        with ThreadPoolExecutor(self._cfg.runtime.workers) as pool:
            try:
                futures = [pool.submit(work) for _ in range(self._cfg.runtime.workers)]
                problems = [future.exception() for future in futures]
            finally:
                self._stop.set()
        _raise_first(problems)

    def _settle(self, task: Task) -> None:
        """Bring one task to its end, which `outcome` reads from the log."""
        for attempt in ATTEMPTS:
            request = request_for(task, attempt, self._cfg)
            if self._log.answer(request.hash) is None and not self._answered(request, task):
                return
            if not isinstance(outcome(task, self._log, self._cfg, self._seed), Reject | None):
                return

    def _answered(self, request: Request, task: Task) -> bool:
        """Put the answer to a request in the log; False if it was given up."""
        given_up = self._log.given_up(request.hash)
        if given_up and given_up["reason"] == "refused":  # it would be refused again
            return False
        if found := self._cache.get(request.hash):
            self._log.append(entry(request, 0.0, 0.0) | found | {"cached": True})
            return True
        runtime = self._cfg.runtime
        prompt_tokens = self._tokens.prompt(task)
        most = cost_of(prompt_tokens, self._cfg.max_tokens, runtime)
        if runtime.max_request_cost is not None and most > runtime.max_request_cost:
            error = f"it could cost {most:.6f}, more than max_request_cost={runtime.max_request_cost}"
            self._log.append(entry(request, 0.0, 0.0) | {"error": error, "reason": "too_dear"})
            return False
        for number in range(runtime.tries):
            if number:
                wait = min(runtime.backoff * 2 ** (number - 1), runtime.max_backoff)
                self._stop.wait(wait * random.uniform(0.5, 1.0))
            if self._call(request, prompt_tokens, most, last=number == runtime.tries - 1):
                return True
            if self._log.given_up(request.hash) is not given_up:
                return False
        return False

    def _call(self, request: Request, prompt_tokens: int, most: float, last: bool) -> bool:
        """Call the endpoint once and log what came of it; True if that is an answer."""
        self._purse.reserve(most)
        cost = 0.0
        try:
            self._pace.wait(prompt_tokens + self._cfg.max_tokens, self._stop)
            start = time.monotonic()
            try:
                answer = self._endpoint.ask(request)
            except Failed as problem:
                cost = most if problem.may_cost else 0.0
                self._log_failure(entry(request, cost, time.monotonic() - start), problem, last)
                return False
            counted = prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens
            written = self._tokens.of(answer.text) if answer.answer_tokens is None else answer.answer_tokens
            said = {
                "answer": answer.text,
                "finish": answer.finish,
                "prompt_tokens": counted,
                "answer_tokens": written,
            }
            cost = cost_of(counted, written, self._cfg.runtime)
            self._log.append(entry(request, cost, time.monotonic() - start) | said)
            self._cache.put(request.hash, said)
            self._failures = 0
            return True
        finally:
            self._purse.settle(most, cost)

    def _log_failure(self, record: Record, problem: Failed, last: bool) -> None:
        """Log a call without an answer; a request's last one says so.

        Raises Unusable if so many requests in a row came to nothing that the endpoint must be down.
        """
        self._pace.pause(problem.wait)
        ends = {"reason": "unanswered" if problem.passes else "refused"} if last or not problem.passes else {}
        self._log.append(record | {"error": str(problem)} | ends)
        if ends and problem.passes:
            self._failures += 1
            if self._failures >= max(FEWEST_FAILURES, self._cfg.runtime.workers):
                raise Unusable(f"{self._failures} requests in a row had no answer; {problem}: run again to go on")


def entry(request: Request, cost: float, seconds: float) -> Record:
    """Return what every line of the log says of a call."""
    source, image, kind, version = request.about
    return {
        "request": request.hash,
        "source": source,
        "image": image,
        "kind": kind,
        "version": version,
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
