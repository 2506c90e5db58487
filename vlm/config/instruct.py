"""Settings of stage 02a."""

import re
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from vlm.config.data import SourceConfig
from vlm.config.endpoint import EndpointRuntime
from vlm.errors import Unusable


class AnswerFormat(Enum):
    """What an answer is: `turns` are questions and answers under marks; `text` answers one of `questions`."""

    turns = "turns"
    text = "text"


@dataclass
class ExampleConfig:
    """One exchange that shows the model what is wanted."""

    captions: list[str] = MISSING
    boxes: list[str] = field(default_factory=list)  # lines as "dog: [0.12, 0.3, 0.5, 0.9]"
    answer: str = MISSING


@dataclass
class KindConfig:
    """One kind of instruction data: what is asked of the text model, and what its answer must be."""

    prompt: str = MISSING  # the system's turn
    examples: list[ExampleConfig] = field(default_factory=list)
    reads_boxes: bool = False  # the model is told the boxes too, where a source has them
    captions_heading: str = "Captions:"  # before the captions, in the language of the prompt
    boxes_heading: str = "Objects (left, top, right, bottom, from 0 to 1):"
    format: AnswerFormat = AnswerFormat.turns
    question_mark: str = "Question:"  # turns: a line that begins with it begins a question
    answer_mark: str = "Answer:"
    min_turns: int = 1  # turns: exchanges
    max_turns: int = 1
    questions: list[str] = field(default_factory=list)  # text: one is chosen by the seed and the picture
    min_chars: int = 1  # of each answer
    max_chars: int = 10_000
    scripts: list[str] = field(default_factory=list)  # of four letters in five, as Unicode names them: LATIN, CJK, …
    common_words: list[str] = field(default_factory=list)  # words that tell the language; one in ten is one of them
    mentions: list[str] = field(default_factory=list)  # patterns (re): the answer speaks of captions or boxes as such
    refusals: list[str] = field(default_factory=list)  # patterns (re): the model declines

    def __post_init__(self) -> None:
        if self.format is AnswerFormat.text and not self.questions:
            raise Unusable("a kind of format text needs questions: the list of what it may answer")
        if not 1 <= self.min_turns <= self.max_turns or not 1 <= self.min_chars <= self.max_chars:
            raise Unusable("a kind's min_turns and min_chars are at least 1 and at most max_turns and max_chars")
        for pattern in (*self.mentions, *self.refusals):
            try:
                re.compile(pattern)
            except re.error as problem:
                raise Unusable(f"a kind's pattern {pattern!r} is no regular expression: {problem}") from None


@dataclass
class InstructRuntime(EndpointRuntime):
    """The endpoint, and what else a resumed run may change."""

    dry_run: bool = False  # say how many requests, tokens and what cost, and end
    preview: int = 24  # samples of each kind shown in preview.html; 0: no page


@dataclass
class InstructConfig:
    """Stage 02a."""

    sources: list[SourceConfig] = field(default_factory=list)  # captions, with boxes where the source has them
    kinds: dict[str, KindConfig] = field(default_factory=dict)  # conf/instruct/: instruct=[conversation,detail]
    limit: int | None = None  # ask about only the first pictures of each source
    model: str | None = None  # as the endpoint calls it
    max_tokens: int = 1024  # of an answer
    temperature: float | None = 0.7  # null: the endpoint's own; without sampling a second attempt is like the first
    runtime: InstructRuntime = field(default_factory=InstructRuntime)
