"""A log that is only ever appended to and says all that was asked; and answers that runs share."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from vlm.errors import Unusable
from vlm.files import sync

Record = dict[str, Any]


class Log:
    """Every call of the endpoint, a line each, on disk before anything depends on it.

    A line with "answer" holds the answer to the request of that hash; one with "error" says why there was none, and
    one with "reason" too that it was given up. Memory grows with the number of requests, not with their texts.
    """

    def __init__(self, path: Path) -> None:
        """Open the log and drop a last line that an interrupted run left unfinished.

        Raises Unusable if another line is damaged.
        """
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        sync(path.parent)
        self._answers: dict[str, tuple[int, int]] = {}  # offset and length of a line by the hash of its request
        self._given_up: dict[str, Record] = {}
        self._refused: set[str] = set()  # given up by an endpoint that had answered something
        self._lock = threading.Lock()
        self._end = 0
        self.cost = 0.0
        self.calls = 0
        self.prompt_tokens = 0
        self.answer_tokens = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._note(json.loads(line), len(line))
                except (ValueError, KeyError, TypeError):
                    raise Unusable(f"{path}, line {number} is damaged: mend it, or delete the line") from None
        os.ftruncate(self._handle, self._end)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def append(self, record: Record) -> None:
        """Add a line and return once it is on disk."""
        line = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        with self._lock:
            left = memoryview(line)
            while left:
                left = left[os.write(self._handle, left) :]
            os.fsync(self._handle)
            self._note(record, len(line))

    def answer(self, request: str) -> Record | None:
        """Return the line that answers a request, by its hash."""
        with self._lock:
            place = self._answers.get(request)
        return json.loads(os.pread(self._handle, place[1], place[0])) if place else None

    def given_up(self, request: str) -> Record | None:
        """Return the line that says why a request was given up."""
        with self._lock:
            return self._given_up.get(request)

    def refused(self, request: str) -> bool:
        """Say whether a request would be refused again; not if all were refused then, as under wrong settings."""
        with self._lock:
            return request in self._refused

    @property
    def answered(self) -> int:
        """Return how many requests have an answer."""
        return len(self._answers)

    def _note(self, record: Record, length: int) -> None:
        if "answer" in record:
            self._answers[record["request"]] = (self._end, length)
            self.prompt_tokens += record["prompt_tokens"]
            self.answer_tokens += record["answer_tokens"]
        elif "reason" in record:
            self._given_up[record["request"]] = record
            if record["reason"] == "refused" and self._answers:
                self._refused.add(record["request"])
        self.cost += record["cost"]
        self.calls += not (record.get("cached") or record.get("reason") == "too_dear")
        self._end += length


class Cache:
    """Answers by the hash of their request, in a folder that runs share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, request: str) -> Record | None:
        """Return the answer, or None; a damaged file is none."""
        try:
            return json.loads(self._path(request).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, request: str, answer: Record) -> None:
        """Keep an answer; the file is whole or not there."""
        path = self._path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another run may be writing the same answer
        waiting.write_bytes(json.dumps(answer, ensure_ascii=False).encode(errors="backslashreplace"))
        sync(waiting)
        waiting.rename(path)

    def _path(self, request: str) -> Path:
        return self._folder / request[:2] / f"{request}.json"
