"""An OpenAI-compatible endpoint: one request, one answer, or why there is none.

The key is read from the environment, kept in the client alone, and struck out of whatever the endpoint says.
"""

import email.utils
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from vlm.config import EndpointRuntime
from vlm.endpoint.request import Request
from vlm.errors import Unusable

LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
LONGEST_WAIT = 3600.0  # seconds that an endpoint may ask for
PASSES = {408, 409, 425, 429}  # states that pass, as all from 500 on do
SETTINGS = {401: "key", 403: "key", 404: "base_url or model"}  # what is wrong for every request alike


@dataclass(frozen=True)
class Answer:
    """What the endpoint said. Counts are None if it did not say them."""

    text: str
    finish: str | None  # stop | length | content_filter | …
    prompt_tokens: int | None
    answer_tokens: int | None


class Failed(Exception):
    """A request that brought no answer."""

    def __init__(self, reason: str, *, passes: bool, may_cost: bool, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.passes = passes  # the same request may succeed later
        self.may_cost = may_cost  # the endpoint may have written an answer that was lost
        self.wait = wait  # seconds that the endpoint asks for


class Endpoint:
    """One client for all workers."""

    def __init__(self, runtime: EndpointRuntime, setting: str) -> None:
        """Raises Unusable if `runtime`, which is called `setting` in messages, names no endpoint, or one that needs a key."""
        if runtime.base_url is None:
            raise Unusable(f"{setting}.base_url has no value: give the endpoint, like http://localhost:8000/v1")
        self._key = os.environ.get(runtime.key_variable, "").strip()
        if not self._key and urlsplit(runtime.base_url).hostname not in LOCAL:
            raise Unusable(f"the environment has no {runtime.key_variable}: {runtime.base_url} needs a key")
        self._runtime = runtime
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=runtime.base_url, timeout=runtime.timeout, max_retries=0
        )

    def ask(self, request: Request) -> Answer:
        """Return the answer to a request.

        Raises Failed; Unusable if no request can succeed: a wrong key, base_url or model, or no money left.
        """
        try:
            return self._cleaned(self._stream(request) if self._runtime.stream else self._whole(request))
        except openai.APIStatusError as problem:
            raise self._of_status(problem) from None
        except openai.APITimeoutError:
            raise Failed(f"no answer in {self._runtime.timeout:g} s", passes=True, may_cost=True) from None
        except openai.APIConnectionError as problem:
            reached = not isinstance(problem.__cause__, httpx2.ConnectError)
            reason = self._clean(f"the connection broke: {problem.__cause__ or problem}")
            raise Failed(reason, passes=True, may_cost=reached) from None
        except (openai.APIError, ValueError, LookupError, TypeError, AttributeError) as problem:
            reason = self._clean(f"the answer is malformed: {problem}")
            raise Failed(reason, passes=True, may_cost=True) from None

    def _whole(self, request: Request) -> Answer:
        found = self._client.chat.completions.create(**self._body(request), stream=False)
        choice = found.choices[0]
        return _answer(choice.message.content, choice.finish_reason, found.usage)

    def _stream(self, request: Request) -> Answer:
        deadline = time.monotonic() + self._runtime.timeout
        texts, finish, usage = [], None, None
        with self._client.chat.completions.create(
            **self._body(request), stream=True, stream_options={"include_usage": True}
        ) as chunks:
            for chunk in _until(deadline, chunks, self._runtime.timeout):
                usage = chunk.usage or usage
                for choice in chunk.choices[:1]:
                    texts.append(choice.delta.content or "")
                    finish = choice.finish_reason or finish
        if finish is None:
            raise Failed("the stream ended before the answer did", passes=True, may_cost=True)
        return _answer("".join(texts), finish, usage)

    def _body(self, request: Request) -> dict[str, Any]:
        limit = {self._runtime.max_tokens_name: request.max_tokens}
        heat = {} if request.temperature is None else {"temperature": request.temperature}
        return {"model": request.model, "messages": request.messages} | limit | heat

    def _of_status(self, problem: openai.APIStatusError) -> Exception:
        status = problem.status_code
        said = self._clean(f"{status} {problem.message}")
        if status in SETTINGS or problem.code == "insufficient_quota":
            return Unusable(f"the endpoint says {said}: check its {SETTINGS.get(status, 'account')}, then run again")
        wait = _wait_of(problem.response.headers)
        return Failed(f"the endpoint says {said}", passes=status in PASSES or status >= 500, may_cost=False, wait=wait)

    def _cleaned(self, answer: Answer) -> Answer:
        return Answer(self._strike(answer.text), answer.finish, answer.prompt_tokens, answer.answer_tokens)

    def _clean(self, said: str) -> str:
        return " ".join(self._strike(said).split())[:300]

    def _strike(self, said: str) -> str:
        return said.replace(self._key, "***") if self._key else said


def _answer(text: object, finish: str | None, usage: Any) -> Answer:  # noqa: ANN401 - the client's own type, or None
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} stands where the text is expected")
    counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(text, finish, *(count if isinstance(count, int) else None for count in counts))


def _until(deadline: float, chunks: Iterable[Any], timeout: float) -> Iterable[Any]:
    for chunk in chunks:
        if time.monotonic() > deadline:
            raise Failed(f"the answer took more than {timeout:g} s", passes=True, may_cost=True)
        yield chunk


def _wait_of(headers: httpx2.Headers) -> float:
    """Return the seconds of Retry-After, which is a number or a date (RFC 9110, 10.2.3); 0 without one."""
    said = headers.get("retry-after", "0")
    try:
        wait = float(said)
    except ValueError:
        date = email.utils.parsedate_tz(said)
        wait = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return min(max(wait, 0.0), LONGEST_WAIT)
