"""A file of predictions: one JSON line for each answer, appended as it comes, so that a killed run goes on."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from vlm.errors import Unusable


@dataclass(frozen=True)
class Prediction:
    """What a model answered to a question."""

    question_id: str
    answer: str

    def line(self) -> str:
        """Return it as a line of the file."""
        record = {"question_id": self.question_id, "answer": self.answer}
        return json.dumps(record, ensure_ascii=False) + "\n"


def read_predictions(path: Path) -> dict[str, str]:
    """Return answers by question id; none if there is no file.

    A last line without its end was torn when the run was killed, and does not count.
    Raises Unusable if another line is no prediction.
    """
    if not path.is_file():
        return {}
    answers = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            answers[record["question_id"]] = record["answer"]
        except (ValueError, TypeError, KeyError):
            raise Unusable(f"{path}, line {number}: no prediction; delete the line and run again") from None
    return answers


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """Open the file to append to, without the torn line that a killed run may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as handle:
        handle.seek(0)
        handle.truncate(handle.read().rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8") as handle:
        yield handle


def append(handle: TextIO, prediction: Prediction) -> None:
    """Write a prediction so that it survives the death of this process."""
    handle.write(prediction.line())
    handle.flush()


def write_in_order(path: Path, question_ids: Iterable[str], answers: Mapping[str, str]) -> None:
    """Replace the file by one in the order of the questions, so that its bytes do not tell how the run went."""
    waiting = path.with_name(path.name + ".tmp")
    with waiting.open("w", encoding="utf-8") as handle:
        handle.writelines(Prediction(identity, answers[identity]).line() for identity in question_ids)
        handle.flush()
        os.fsync(handle.fileno())
    waiting.rename(path)
