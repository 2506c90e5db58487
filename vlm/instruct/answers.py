"""An answer becomes turns, or the reason why it is none."""

import re
import unicodedata
from collections.abc import Sequence

from vlm.config import AnswerFormat, KindConfig
from vlm.data.samples import IMAGE, Reject, Turn

SCRIPT_SHARE = 0.8  # of the letters
COMMON_SHARE = 0.1  # of the words: English prose has about 0.4 of its twenty commonest
FEW_WORDS = 8  # fewer do not tell a language
SPECIAL = re.compile(r"<\|[^|]*\|>|</?s>|\[/?INST\]|\ufffd|" + re.escape(IMAGE))  # U+FFFD: bytes that are no text


def turns_of(answer: str, finish: str | None, kind: KindConfig, question: str) -> tuple[Turn, ...]:
    """Return the turns that an answer holds; `question` is what an answer of format text replies to.

    Raises Reject with one of: refusal, cut_off, format, roles, length, language, mentions.
    """
    text = answer.strip()
    if not text:
        raise Reject("format", "the answer is empty")
    _check_phrases("refusal", text, kind.refusals)
    if finish != "stop":
        raise Reject("cut_off", f"the answer ended by {finish!r}, not by itself")
    if special := SPECIAL.search(text):
        raise Reject("format", f"the answer holds {special[0]!r}, which is no text")
    if kind.format is AnswerFormat.text:
        turns: tuple[Turn, ...] = (Turn("user", question), Turn("assistant", text))
    else:
        turns = _exchanges(text, kind)
    for turn in turns:
        if turn.role == "assistant" and not kind.min_chars <= len(turn.text) <= kind.max_chars:
            limits = f"{kind.min_chars} to {kind.max_chars}"
            raise Reject("length", f"an answer has {len(turn.text)} characters, not {limits}")
    said = "\n".join(turn.text for turn in turns)
    _check_language(said, kind)
    _check_phrases("mentions", said, kind.mentions)
    return turns


def _exchanges(text: str, kind: KindConfig) -> tuple[Turn, ...]:
    roles = {kind.question_mark: "user", kind.answer_mark: "assistant"}
    marks = "|".join(re.escape(mark) for mark in roles)
    before, *parts = re.split(rf"^[ \t]*({marks})", text, flags=re.MULTILINE)
    if before.strip() or not parts:
        raise Reject("format", f"the answer does not begin with {kind.question_mark!r}")
    turns = tuple(Turn(roles[mark], said.strip()) for mark, said in zip(parts[::2], parts[1::2], strict=True))
    if any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)) or len(turns) % 2:
        raise Reject("roles", "questions and answers do not take turns: " + " ".join(turn.role for turn in turns)[:200])
    if not all(turn.text for turn in turns):
        raise Reject("format", "a question or an answer is empty")
    if not kind.min_turns <= len(turns) // 2 <= kind.max_turns:
        raise Reject("length", f"{len(turns) // 2} exchanges, not {kind.min_turns} to {kind.max_turns}")
    return turns


def _check_language(text: str, kind: KindConfig) -> None:
    letters = [character for character in text if character.isalpha()]
    if kind.scripts:
        named = sum(unicodedata.name(letter, "").startswith(tuple(kind.scripts)) for letter in letters)
        if named < SCRIPT_SHARE * max(len(letters), 1):
            raise Reject("language", f"{named} of {len(letters)} letters are {' or '.join(kind.scripts)}")
    words = re.findall(r"\w+", text.lower())
    if kind.common_words and len(words) >= FEW_WORDS:
        common = sum(word in kind.common_words for word in words)
        if common < COMMON_SHARE * len(words):
            raise Reject("language", f"{common} of {len(words)} words are common ones of the language")


def _check_phrases(code: str, text: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if found := re.search(pattern, text, re.IGNORECASE):
            raise Reject(code, f"the answer says {found[0]!r}")
