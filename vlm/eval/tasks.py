"""Tasks: a held-out split, or a benchmark's own files, become questions; each gets its pictures or those of another."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlm.config import TaskConfig
from vlm.data.chat import Chat
from vlm.data.index import Split, Stored
from vlm.data.samples import IMAGE, Sample, Turn
from vlm.errors import Unusable
from vlm.eval.benchmark import Benchmark
from vlm.eval.question import Place, Question
from vlm.eval.scorers import CAPTIONS

TRIES = 64  # shifts that are tried to keep every question off its own pictures


class Pictures(Protocol):
    """Samples by number: a split, or a benchmark's own files."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Stored: ...

    def outline(self, number: int) -> tuple[Sample, tuple[str, ...]]:
        """Return a sample and a name for each of its pictures, the same for equal ones."""


def open_task(name: str, task: TaskConfig, shards: Path | None, seed: int) -> Pictures:
    """Return the samples of a task.

    Raises Unusable if they are not there, or a picture of them is not.
    """
    if task.sources:
        return Benchmark(f"task {name}", task.sources, seed)
    if shards is None:
        raise Unusable(f"task {name} asks about the split {task.split}, and there are no shards")
    return Split(shards / task.split)


def read_questions(name: str, task: TaskConfig, samples: Pictures, chat: Chat | None) -> list[Question]:
    """Return the questions of a task in the order of its samples: the last answer of each conversation is asked for.

    Captions of one picture become one question with them all as references. Without `chat` there are no prompts.
    Raises Unusable if there is no question, or two have the same id.
    """
    questions: Iterator[Question] = (
        _question(number, *samples.outline(number), chat) for number in range(len(samples))
    )
    if task.scorer in CAPTIONS:
        questions = iter(_by_picture(questions))
    found = list(itertools.islice(questions, task.limit))
    if not found:
        raise Unusable(f"task {name}: {where(samples)} with limit={task.limit} leaves no question")
    seen: set[str] = set()
    for question in found:
        if question.id in seen:
            raise Unusable(f"task {name}: two samples of {where(samples)} have the question_id {question.id}")
        seen.add(question.id)
    return found


def where(samples: Pictures) -> str:
    """Return where samples come from, to be read by a person; of a split without its run, whose name changes no figure."""
    return "/".join(samples.folder.parts[-2:]) if isinstance(samples, Split) else str(samples)


def fingerprint(questions: Sequence[Question]) -> str:
    """Return 12 hex digits over all that is asked."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr((question.id, question.text, question.references, question.pictures)).encode())
    return digest.hexdigest()[:12]


def swapped_pictures(questions: Sequence[Question], seed: int) -> list[tuple[Place, ...]]:
    """Return, for each question, pictures of other samples: as many as its own, and each picture used once.

    The pictures are lined up with equal ones side by side, and each question takes those that lie one fixed shift
    ahead. A shift as long as the longest run of equal ones leads past them, so a question keeps a picture of its
    own only where most questions share one. A question without pictures stays without.
    """
    shown = [number for number, question in enumerate(questions) if question.pictures]
    shown.sort(key=lambda number: (_draw(seed, questions[number].pictures), number))
    line = [(number, i) for number in shown for i in range(len(questions[number].pictures))]
    if not line:
        return [() for _ in questions]
    runs = itertools.groupby(shown, key=lambda number: questions[number].pictures)
    longest = max(sum(len(questions[number].pictures) for number in run) for _, run in runs)
    shifts = [shift % len(line) for shift in range(longest, longest + min(TRIES, len(line)))]
    shift = min(shifts, key=lambda shift: _kept(questions, line, shift))
    taken: list[list[Place]] = [[] for _ in questions]
    for at, (number, _) in enumerate(line):
        donor, i = line[(at + shift) % len(line)]
        taken[number].append((questions[donor].sample, i))
    return [tuple(places) for places in taken]


def _kept(questions: Sequence[Question], line: list[Place], shift: int) -> int:
    """Count the pictures that a shift would give to a question which has them anyway."""
    kept = 0
    for at, (number, _) in enumerate(line):
        donor, i = line[(at + shift) % len(line)]
        kept += questions[donor].pictures[i] in questions[number].pictures
    return kept


def _draw(seed: int, pictures: tuple[str, ...]) -> str:
    """Return a place in a random order; the same in every version of every library."""
    return hashlib.sha256(f"{seed}:{pictures}".encode()).hexdigest()


def _question(number: int, sample: Sample, pictures: tuple[str, ...], chat: Chat | None) -> Question:
    last = max(i for i, turn in enumerate(sample.turns) if turn.role == "assistant")
    reference = sample.turns[last].text.strip()
    turns = sample.turns[:last]
    return Question(
        id=str(sample.extra.get("question_id", f"{sample.id}/{number}")),  # corpora repeat their ids
        category=str(sample.extra.get("category", "all")),
        text=sample.turns[last - 1].text.replace(IMAGE, "").strip(),
        reference=reference,
        sample=number,
        prompt=_prompt(chat, turns),
        pictures=pictures,
        extra=sample.extra,
        references=tuple(dict.fromkeys(map(str, sample.extra.get("answers") or [reference]))),
        blind_prompt=_prompt(chat, tuple(map(_without_pictures, turns))) if pictures else None,
    )


def _prompt(chat: Chat | None, turns: tuple[Turn, ...]) -> NDArray[np.int32]:
    return np.empty(0, np.int32) if chat is None else chat.prompt(turns).astype(np.int32)


def _without_pictures(turn: Turn) -> Turn:
    """Return the turn without picture placeholders and the lines they stood on; only the user's turns have any."""
    if IMAGE not in turn.text or turn.role != "user":
        return turn
    lines = [line.replace(IMAGE, "").strip() for line in turn.text.split("\n") if line.strip() != IMAGE]
    return replace(turn, text="\n".join(lines))


def _by_picture(questions: Iterator[Question]) -> list[Question]:
    """Join the captions of each picture, known by its image_id or by its bytes."""
    groups: dict[Any, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.extra.get("image_id", question.pictures), []).append(question)
    return [
        replace(
            group[0],
            id=str(group[0].extra.get("image_id", group[0].id)),
            references=tuple(reference for one in group for reference in one.references),
        )
        for group in groups.values()
    ]
