"""A file of predictions: one JSON line for each answer, appended as it comes, so that a killed run goes on.

    {"question_id", "answer", "tokens", "model": 12 hex digits, "asked": 12 hex digits of all that was asked}

Several ranks write a file each, <task>.jsonl, <task>.rank1.jsonl, …, which are joined at the end.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from vlm.errors import Unusable

ANSWERS = ("answer", "text", "prediction", "caption")  # what others call it: LLaVA, VQA challenge, COCO captions
QUESTIONS = ("question_id", "image_id", "id")


@dataclass(frozen=True)
class Prediction:
    """What a model answered to a question."""

    question_id: str
    answer: str
    tokens: int = 0  # of the answer
    model: str = ""  # fingerprint of who answered
    asked: str = ""  # and of prompt, pictures and generation settings

    def line(self) -> str:
        """Return it as a line of the file."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Return predictions by question id; none if there is no file.

    A last line without its end was torn when the run was killed, and does not count.
    Raises Unusable if another line is no prediction, or a question is answered twice.
    """
    if not path.is_file():
        return {}
    found: dict[str, Prediction] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            prediction = Prediction(**json.loads(line))
        except (ValueError, TypeError):
            raise Unusable(f"{path}, line {number}: no prediction; delete the line and run again") from None
        if prediction.question_id in found:
            raise Unusable(f"{path}, line {number}: the question {prediction.question_id} is answered a second time")
        found[prediction.question_id] = prediction
    return found


def read_parts(path: Path, model: str, asked: Mapping[str, str]) -> dict[str, Prediction]:
    """Return what all ranks have answered so far; `asked` are the fingerprints by question id.

    Raises Unusable if a prediction is another model's, or its question is unknown or was asked otherwise.
    """
    found: dict[str, Prediction] = {}
    for part in (path, *parts_of(path)):
        for identity, one in read_predictions(part).items():
            if one.model != model:
                raise Unusable(
                    f"{part} holds answers of another model ({one.model or 'unnamed'}, not {model}): delete it, or "
                    "score it with eval.predictions="
                )
            if identity not in asked:
                raise Unusable(f"{part} answers the question {identity}, which is not asked: delete it and run again")
            if one.asked != asked[identity]:
                raise Unusable(
                    f"{part} answers the question {identity} as it was with another prompt, other pictures or other "
                    "generation settings: delete it and run again"
                )
            found[identity] = one
    return found


def parts_of(path: Path) -> list[Path]:
    """Return the files that ranks other than the first have left."""
    return sorted(path.parent.glob(f"{path.stem}.rank[0-9]*.jsonl"))


def part_of(path: Path, rank: int) -> Path:
    """Return the file that a rank appends to."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}.jsonl")


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """Open the file to append to, without the torn line that a killed run may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as handle:
        handle.seek(0)
        handle.truncate(handle.read().rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8") as handle:
        yield handle


def append(handle: TextIO, predictions: Sequence[Prediction]) -> None:
    """Write predictions at once, so that they survive the death of this process."""
    handle.write("".join(one.line() for one in predictions))
    handle.flush()


def write_in_order(path: Path, predictions: Iterable[Prediction]) -> None:
    """Replace the file, and those of other ranks, by one in this order: its bytes do not tell how the run went."""
    waiting = path.with_name(path.name + ".tmp")
    with waiting.open("w", encoding="utf-8") as handle:
        handle.writelines(one.line() for one in predictions)
        handle.flush()
        os.fsync(handle.fileno())
    waiting.rename(path)
    for part in parts_of(path):
        part.unlink()


def read_given(path: Path, questions: Sequence[str]) -> dict[str, Prediction]:
    """Return predictions that somebody else wrote, as JSON lines or as a list, by the ids of `questions`.

    An id may lack the name of its source where that leaves no doubt. Raises Unusable if the file is not there, a
    line is no prediction, or a question is unknown or answered twice.
    """
    if not path.is_file():
        raise Unusable(f"{path} is not there: eval.predictions= names a folder with <task>.jsonl for each task")
    known = {identity: identity for identity in questions}
    shorter: dict[str, list[str]] = {}
    for identity in questions:
        shorter.setdefault(identity.rpartition("/")[2], []).append(identity)
    known |= {short: of[0] for short, of in shorter.items() if len(of) == 1 and short not in known}
    found: dict[str, Prediction] = {}
    for number, record in enumerate(_records(path), start=1):
        answer = next((record[key] for key in ANSWERS if isinstance(record, dict) and key in record), None)
        named = next((record[key] for key in QUESTIONS if isinstance(record, dict) and key in record), None)
        if not isinstance(answer, str) or named is None:
            raise Unusable(f"{path}, record {number}: no prediction with a question_id and an answer")
        if (identity := known.get(str(named))) is None:
            raise Unusable(f"{path}, record {number}: the question {named} is not one of this task")
        if identity in found:
            raise Unusable(f"{path}, record {number}: the question {named} is answered a second time")
        found[identity] = Prediction(identity, answer)
    return found


def _records(path: Path) -> list[object]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as problem:
        raise Unusable(f"{path} is no JSON: {problem}") from None
