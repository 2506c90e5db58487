"""Free-form answers are marked by a text model, which reads the question, what should be said, and what was said.

judged/<task>.jsonl    every reply and its points, or why there are none; <task>.shuffled.jsonl, … without looking
judge.jsonl            while it goes on: every call, its cost and time; what was answered is not asked for again
(MT-bench, arXiv:2306.05685; LLaVA-Bench, arXiv:2304.08485, section 5.1: points by a text model against a reference.)
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm import ranks
from vlm.config import EvalConfig, JudgeConfig
from vlm.endpoint.asker import Asker
from vlm.endpoint.limits import Spent
from vlm.endpoint.log import Cache, Log
from vlm.endpoint.request import Request
from vlm.errors import Unusable
from vlm.eval.question import Question
from vlm.eval.scorers import JUDGE
from vlm.files import write_whole

ATTEMPTS = (1, 2)  # a reply without points is asked for once more
BYTES_OF_A_TOKEN = 3  # of UTF-8, few rather than many: English has about four
CALLS = "judge.jsonl"
UNANSWERED = "unanswered"  # how the log calls what may yet succeed


@dataclass(frozen=True)
class Verdict:
    """What a judge says of an answer."""

    points: float | None  # None if there is no verdict
    reply: str
    problem: str = ""  # why there is none


@contextmanager
def judging(cfg: EvalConfig, cache: Path, out: Path) -> Iterator["Judge | None"]:
    """Yield the judge; None if no task needs one, or on another rank than the first.

    Raises Unusable if a task needs one and it lacks a model, a prompt, an endpoint or the endpoint's key.
    """
    if not ranks.first() or all(task.scorer != JUDGE for task in cfg.tasks.values()):
        yield None
        return
    log = Log(out / CALLS)
    try:
        judge = Judge(cfg.judge, log, cache, out)
        yield judge
        print(f"judged by {cfg.judge.model}: {log.calls:,} calls, cost {log.cost:.4f}")
        (out / CALLS).unlink()  # times and costs leave no trace in the artifact: equal replies make equal files
    finally:
        log.close()
        if (out / CALLS).is_file() and (out / CALLS).stat().st_size == 0:
            (out / CALLS).unlink()


class Judge:
    """Marks answers through an endpoint."""

    def __init__(self, cfg: JudgeConfig, log: Log, cache: Path, out: Path) -> None:
        """Go on with the calls of the log.

        Raises Unusable if a model, a prompt, an endpoint or the endpoint's key is missing.
        """
        if cfg.model is None or cfg.prompt is None:
            missing = "model" if cfg.model is None else "prompt"
            raise Unusable(f"eval.judge.{missing} has no value, and a task has scorer: judge (conf/eval/judge.yaml)")
        self.cfg = cfg
        self._verdicts: dict[str, dict[str, Verdict]] = {}  # by condition and question
        self._log = log
        self._out = out
        self._asker = Asker(cfg.runtime, "eval.judge.runtime", _tokens_of, log, Cache(cache))

    def mark(self, condition: str, questions: Sequence[Question], answers: Mapping[str, str]) -> list[float | None]:
        """Return the share of all points that each answer got, None where the judge gave none; write them down.

        Raises Unusable if a question has no reference, none of all answers got points, the money is spent, or the
        endpoint is down: the next call goes on.
        """
        for question in questions:
            if not question.reference:
                raise Unusable(
                    f"question {question.id} has no reference answer, and the judge sees no picture: give one as 'answer'"
                )
        self._ask(condition, questions, answers)
        verdicts = {question.id: self._verdict(question, answers[question.id]) for question in questions}
        lines = [
            json.dumps({"question_id": identity, **vars(verdict)}, ensure_ascii=False) + "\n"
            for identity, verdict in verdicts.items()
        ]
        (self._out / "judged").mkdir(exist_ok=True)
        write_whole(self._out / "judged" / f"{condition}.jsonl", "".join(lines).encode(errors="backslashreplace"))
        problems = [verdict.problem for verdict in verdicts.values() if verdict.points is None]
        if waiting := [problem for problem in problems if problem.startswith(UNANSWERED)]:
            raise Unusable(f"{len(waiting)} answers of {condition} wait for the judge ({waiting[0]}): run again")
        if len(problems) == len(verdicts):
            raise Unusable(f"the judge gave no points to any answer of {condition}; of the first, {problems[0]}")
        self._verdicts[condition] = verdicts
        shares = (verdict.points for verdict in verdicts.values())
        return [None if points is None else points / self.cfg.points for points in shares]

    def remark(self, condition: str, identity: str) -> str:
        """Return what the judge said of an answer; "" if it was not asked."""
        found = self._verdicts.get(condition, {}).get(identity)
        return found.reply if found else ""

    def as_json(self, task: str) -> dict[str, Any]:
        """Return what metrics.json says of a task that was judged: by whom, told what, and which answers have no points."""
        missing = self._missing_of(task)
        if not missing:
            return {}
        said = {"model": self.cfg.model, "prompt": version_of(self.cfg), "points": self.cfg.points}
        return {"judge": said | {"without_points": {name: of for name, of in missing.items() if of}}}

    def lines(self, task: str) -> list[str]:
        """Return a line for each condition of a task in which answers have no points, naming the first."""
        return [
            f"{name}: {len(of)} answers have no points and count neither way; {min(of)}: {of[min(of)]}"
            for name, of in self._missing_of(task).items()
            if of
        ]

    def _missing_of(self, task: str) -> dict[str, dict[str, str]]:
        """Return why answers have no points, by condition of a task and question; nothing if it was not judged."""
        return {
            name: {identity: one.problem for identity, one in of.items() if one.points is None}
            for name, of in self._verdicts.items()
            if name == task or name.startswith(f"{task}.")
        }

    def _ask(self, condition: str, questions: Sequence[Question], answers: Mapping[str, str]) -> None:
        with tqdm(total=len(questions), desc=f"05_eval {condition} judged", unit=" answers") as bar:

            def settle(question: Question) -> None:
                for attempt in ATTEMPTS:
                    request = self._request(question, answers[question.id], attempt)
                    count = sum(_tokens_of(message["content"]) for message in request.messages)
                    if not self._asker.answered(request, lambda count=count: count):
                        return
                    if self._verdict(question, answers[question.id]).points is not None:
                        return

            try:
                self._asker.ask_all(questions, settle, bar.update)
            except Spent as problem:
                raise Unusable(f"{problem}: raise eval.judge.runtime.max_cost and run again to go on") from None

    def _request(self, question: Question, answer: str, attempt: int) -> Request:
        parts = {"question": question.text, "reference": question.reference, "answer": answer or "(no answer)"}
        said = re.sub(r"\{(question|reference|answer)\}", lambda found: parts[found[1]], str(self.cfg.prompt))
        about = {"question_id": question.id, "version": version_of(self.cfg)}
        messages = [{"role": "user", "content": said.strip()}]
        return Request(messages, str(self.cfg.model), self.cfg.max_tokens, self.cfg.temperature, about, attempt)

    def _verdict(self, question: Question, answer: str) -> Verdict:
        """Return what the log makes of an answer."""
        found = Verdict(None, "", f"{UNANSWERED}: it was not asked")
        for attempt in ATTEMPTS:
            request = self._request(question, answer, attempt)
            record = self._log.answer(request.hash)
            if record is None:
                given_up = self._log.given_up(request.hash)
                return Verdict(None, found.reply, f"{given_up['reason']}: {given_up['error']}") if given_up else found
            found = verdict_of(record["answer"], self.cfg)
            if found.points is not None:
                break
        return found


def verdict_of(reply: str, cfg: JudgeConfig) -> Verdict:
    """Return the points that a reply gives: the first group of the last place where `cfg.pattern` is found."""
    found = re.findall(cfg.pattern, reply)
    if not found:
        return Verdict(None, reply, f"its reply has no {cfg.pattern!r}")
    points = float(found[-1])
    if not 0 <= points <= cfg.points:
        return Verdict(None, reply, f"its reply gives {points:g} points, not 0 to {cfg.points:g}")
    return Verdict(points, reply)


def version_of(cfg: JudgeConfig) -> str:
    """Return 8 hex digits that change with what the judge is told."""
    return hashlib.sha256(str(cfg.prompt).encode()).hexdigest()[:8]


def _tokens_of(text: str) -> int:
    return len(text.encode(errors="replace")) // BYTES_OF_A_TOKEN + 1
