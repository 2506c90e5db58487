"""A picture and a kind become a chat."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.config import KindConfig
from vlm.data.samples import draw
from vlm.endpoint.request import Messages, Request
from vlm.instruct.facts import Facts


@dataclass(frozen=True)
class Task:
    """One sample to be written."""

    facts: Facts
    name: str  # of the kind
    kind: KindConfig
    version: str  # of the kind's prompt

    @property
    def id(self) -> str:
        return f"{self.facts.image.name}#{self.name}"


def version_of(kind: KindConfig) -> str:
    """Return 8 hex digits that change with anything the model is told (not with how its answer is checked)."""
    told = [kind.prompt, kind.reads_boxes, kind.captions_heading, kind.boxes_heading]
    told += [[example.captions, example.boxes, example.answer] for example in kind.examples]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def request_of(task: Task, attempt: int, model: str, max_tokens: int, temperature: float | None) -> Request:
    """Return the request for a task's first or second attempt."""
    about = {
        "source": task.facts.source,
        "image": task.facts.image.name,
        "kind": task.name,
        "version": task.version,
    }
    messages = [
        *opening(task.kind),
        {"role": "user", "content": query(task.kind, task.facts.captions, task.facts.boxes)},
    ]
    return Request(messages, model, max_tokens, temperature, about, attempt)


def opening(kind: KindConfig) -> Messages:
    """Return what every request of a kind begins with: its prompt and its examples."""
    messages = [{"role": "system", "content": kind.prompt.strip()}]
    for example in kind.examples:
        messages.append({"role": "user", "content": query(kind, example.captions, example.boxes)})
        messages.append({"role": "assistant", "content": example.answer.strip()})
    return messages


def query(kind: KindConfig, captions: Sequence[str], boxes: Sequence[str]) -> str:
    """Return the facts as text: captions a line each, then boxes a line each where the kind reads them."""
    text = "\n".join([kind.captions_heading, *captions])
    return text + "\n\n" + "\n".join([kind.boxes_heading, *boxes]) if kind.reads_boxes and boxes else text


def question_for(task: Task, seed: int) -> str:
    """Return the question that a text answers: one of the kind's, chosen by the seed and the picture."""
    return task.kind.questions[draw(seed, task.id) % len(task.kind.questions)]
