"""Tasks: a held-out split becomes questions, and each question gets its own pictures or those of another sample."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm.config import TaskConfig
from vlm.data.chat import Chat
from vlm.data.index import Split, Stored
from vlm.data.samples import IMAGE
from vlm.errors import Unusable

TRIES = 64  # shifts that are tried to keep every question off its own pictures

Place = tuple[int, int]  # a picture of the split: sample number, and which of the sample's pictures


@dataclass(frozen=True)
class Question:
    """What the model is asked, and what it should say."""

    id: str
    category: str
    text: str  # the last user turn, without picture placeholders
    reference: str
    sample: int  # number in the split
    prompt: NDArray[np.int32]  # (L,) ids, picture tokens included
    pictures: tuple[str, ...]  # digest of each picture's bytes
    extra: Mapping[str, Any] = field(default_factory=dict)  # what the corpus says besides, such as ten people's answers

    @property
    def own(self) -> tuple[Place, ...]:
        """Where its pictures are."""
        return tuple((self.sample, i) for i in range(len(self.pictures)))


def read_questions(name: str, task: TaskConfig, split: Split, chat: Chat) -> list[Question]:
    """Return the questions of a task in the order of its split: the last answer of each conversation is asked for.

    Raises Unusable if there is none, or two have the same id.
    """
    wanted = len(split) if task.limit is None else min(task.limit, len(split))
    questions = [_question(number, split.read(number), chat) for number in range(wanted)]
    if not questions:
        raise Unusable(f"task {name}: {split.folder} with limit={task.limit} leaves no question")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise Unusable(f"task {name}: two samples of {split.folder} have the question_id {question.id}")
        seen.add(question.id)
    return questions


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


def _question(number: int, stored: Stored, chat: Chat) -> Question:
    sample = stored.sample
    last = max(i for i, turn in enumerate(sample.turns) if turn.role == "assistant")
    return Question(
        id=str(sample.extra.get("question_id", f"{sample.id}/{number}")),  # corpora repeat their ids
        category=str(sample.extra.get("category", "all")),
        text=sample.turns[last - 1].text.replace(IMAGE, "").strip(),
        reference=sample.turns[last].text.strip(),
        sample=number,
        prompt=chat.prompt(sample.turns[:last]).astype(np.int32),
        pictures=tuple(hashlib.sha256(data).hexdigest()[:16] for data in stored.pictures),
        extra=sample.extra,
    )
