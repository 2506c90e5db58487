"""All tasks are asked for, a bad answer once more; what becomes of a task depends on the log alone.

First the log is filled, then it is read (`outcome`).
"""

from collections.abc import Callable, Iterable

from vlm.config import InstructConfig
from vlm.data.samples import Reject, Turn
from vlm.endpoint.asker import Asker
from vlm.endpoint.log import Log
from vlm.endpoint.request import Request
from vlm.instruct.answers import turns_of
from vlm.instruct.estimate import Tokens
from vlm.instruct.prompts import Task, question_for, request_of

ATTEMPTS = (1, 2)  # a bad answer is asked for once more


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


def ask_all(
    tasks: Iterable[Task],
    cfg: InstructConfig,
    seed: int,
    tokens: Tokens,
    log: Log,
    asker: Asker,
    done: Callable[[], None],
) -> None:
    """Bring every task to its end, which `outcome` reads from the log; call `done` after each.

    Raises Spent if the money is, Unusable if the endpoint is down; the log keeps what there is.
    """

    def settle(task: Task) -> None:
        for attempt in ATTEMPTS:
            if not asker.answered(request_for(task, attempt, cfg), lambda: tokens.prompt(task)):
                return
            if not isinstance(outcome(task, log, cfg, seed), Reject | None):
                return

    asker.ask_all(tasks, settle, done)
