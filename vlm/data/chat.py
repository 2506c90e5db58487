"""Conversations become token ids and targets.

A target is a token the loss counts: each assistant answer and the end-of-turn token after it, nothing else.
The text is what the tokenizer's own chat template writes, tokenized as a whole, so that a prompt asked at
evaluation is tokenized exactly as it was in training.
"""

import bisect
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vlm.config import Form
from vlm.data.samples import IMAGE, Reject, Turn
from vlm.errors import Unusable

SURROGATE = re.compile("[\ud800-\udfff]")
PROCESSOR_TEMPLATE = "chat_template.json"  # of a processor, as llava-hf wrote it before chat_template.jinja
MARK = re.compile(r"⟦(\d+)⟧")  # stands for the text of a turn while a template is taken apart


@dataclass(frozen=True)
class Encoded:
    """One sample as the model reads it; L tokens, P of them for each picture."""

    ids: NDArray[np.int64]  # (L,)
    is_target: NDArray[np.bool_]  # (L,)
    cut_turns: int = 0  # turns dropped at the end to stay within the limit


class Chat:
    """A tokenizer with its template, its picture token and the number of tokens a picture takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_token: str, image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.image_token = image_token
        self.image_id = tokenizer.convert_tokens_to_ids(image_token)
        self.image_tokens = image_tokens
        self.end_id = tokenizer.eos_token_id
        specials = {
            IMAGE,
            image_token,
            *tokenizer.all_special_tokens,
            *map(str, tokenizer.added_tokens_decoder.values()),
        }
        any_special = "|".join(re.escape(text) for text in sorted(specials, key=len, reverse=True))
        self._special = re.compile(any_special)
        self._end = re.compile(f" ?(?:{any_special})")  # Llama 2 writes a space before its </s>
        if self.end_id is None:
            raise Unusable("the tokenizer has no end-of-sequence token")

    @classmethod
    def load(cls, folder: str, image_token: str, image_tokens: int) -> "Chat":
        """Load the tokenizer of stage 00."""
        return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True), image_token, image_tokens)

    @classmethod
    def of_model(cls, folder: Path) -> "Chat":
        """Load what a LLaVA folder was trained with."""
        config = json.loads((folder / "config.json").read_text())
        file = folder / "processor_config.json"
        token = json.loads(file.read_text()).get("image_token", IMAGE) if file.is_file() else IMAGE
        chat = cls.load(str(folder), token, config.get("image_seq_length") or _image_tokens(config))
        if chat.tokenizer.chat_template is None and (file := folder / PROCESSOR_TEMPLATE).is_file():
            chat.tokenizer.chat_template = json.loads(file.read_text())["chat_template"]
        return chat

    def encode(self, turns: tuple[Turn, ...], images: int, form: Form, max_tokens: int) -> Encoded:
        """Return ids and targets of a sample with `images` pictures, at most `max_tokens` long.

        Whole exchanges are dropped at the end until the rest fits; a picture's tokens are never cut.
        Raises Reject if the roles do not alternate, an answer is empty, the picture tokens do not match the
        pictures, or not even the first exchange fits.
        """
        check(turns, images)
        if self.image_token != IMAGE and any(self.image_token in turn.text for turn in turns):
            raise Reject("image_count", f"a turn holds the tokenizer's own {self.image_token}: write {IMAGE}")
        kept = len(turns)
        while True:
            encoded = self._encode(turns[:kept], form)
            if len(encoded.ids) <= max_tokens:
                return replace(encoded, cut_turns=len(turns) - kept) if kept < len(turns) else encoded
            kept -= 2
            if (
                kept < 2
                or _images_in(turns[:kept]) < images
                or not any(turn.role == "assistant" for turn in turns[:kept])
            ):
                raise Reject("too_long", f"{len(encoded.ids)} tokens, and no exchange fits into {max_tokens}")

    def prompt(self, turns: tuple[Turn, ...]) -> NDArray[np.int64]:
        """Return the ids that ask for the next answer, shape (L,); the last turn is the user's."""
        text, _ = self._write(turns, asking=True)
        return self._begun(*self._tokenize(text, []))[0]

    def _encode(self, turns: tuple[Turn, ...], form: Form) -> Encoded:
        if form is Form.plain:
            return self._encode_plain(turns)
        text, spans = self._write(turns, asking=False)
        return Encoded(*self._begun(*self._tokenize(text, spans)))

    def _encode_plain(self, turns: tuple[Turn, ...]) -> Encoded:
        """Write the picture, the caption and the end; the question is dropped."""
        caption = next(turn.text for turn in turns if turn.role == "assistant").strip()
        opening = [] if self.tokenizer.bos_token_id is None or not self._adds_bos else [self.tokenizer.bos_token_id]
        pictures = [self.image_id] * _images_in(turns)
        words, _ = self._tokenize([(caption, False)], [])
        ids = np.array([*opening, *pictures, *words, self.end_id])
        is_target = np.zeros(len(ids), bool)
        is_target[max(1, len(opening) + len(pictures)) :] = True  # nothing stands before a first token to predict it
        return Encoded(*self._expand(ids, is_target))

    def _write(self, turns: tuple[Turn, ...], *, asking: bool) -> tuple[list[tuple[str, bool]], list[tuple[int, int]]]:
        """Return the pieces of text (each with whether its special tokens count) and the targets' spans in characters."""
        roles = tuple(turn.role for turn in turns)
        scaffold = self._scaffold(roles, asking)
        pieces: list[tuple[str, bool]] = [(scaffold[0], True)]
        spans = []
        at = len(scaffold[0])
        for number, (turn, after) in enumerate(zip(turns, scaffold[1:], strict=True)):
            text = turn.text.strip()
            if turn.role == "user":
                text = text.replace(IMAGE, self.image_token)
            if turn.role == "assistant":
                start = at - self._left_to_say(roles[:number], scaffold[number])
                spans.append((start, at + len(text) + len(self._end_of_turn(after))))
            pieces += [(text, False), (after, True)]
            at += len(text) + len(after)
        return pieces, spans

    @functools.cached_property
    def _bos_left_out(self) -> list[int]:
        """The first token where a processor's template leaves it to the tokenizer; a tokenizer's own writes it."""
        if self.tokenizer.chat_template is None or not self._adds_bos:
            return []
        takes_text = self._filled_in(["⟦0⟧"], ("user",), True)[1::2] == ["0"]
        before, *_ = self._scaffold(("user",), True)
        return [] if takes_text or before.startswith(self.tokenizer.bos_token) else [self.tokenizer.bos_token_id]

    @functools.cached_property
    def _adds_bos(self) -> bool:
        return self.tokenizer("a").input_ids[:1] == [self.tokenizer.bos_token_id]

    @functools.lru_cache(maxsize=256)  # noqa: B019 - one Chat lives as long as its process
    def _scaffold(self, roles: tuple[str, ...], asking: bool) -> tuple[str, ...]:
        """Return what the template writes before the first turn, between the turns, and after the last."""
        if self.tokenizer.chat_template is None:
            raise Unusable("the tokenizer has no chat template: choose a chat model, or form: plain")
        parts = self._filled_in([f"⟦{i}⟧" for i in range(len(roles))], roles, asking)
        if parts[1::2] != [str(i) for i in range(len(roles))]:  # a processor's template wants a list of pieces
            parts = self._filled_in([[{"type": "text", "text": f"⟦{i}⟧"}] for i in range(len(roles))], roles, asking)
        if parts[1::2] != [str(i) for i in range(len(roles))]:
            raise Unusable(
                f"the tokenizer's chat template does not write the turns {', '.join(roles)} once each, in order"
            )
        *written, after = parts[0::2]
        if roles[-1] == "assistant" and not self._special.match(after):
            # Some templates (Qwen1.5's) end the last turn only when another follows it.
            after = self._end_of_turn(self._scaffold((*roles, "user"), asking=True)[-2])
        return (*written, after)

    def _filled_in(self, contents: Sequence[object], roles: tuple[str, ...], asking: bool) -> list[str]:
        """Return what the template makes of marked turns, cut at the marks; nothing if it does not take them."""
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            return MARK.split(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking)
            )
        except (jinja2.TemplateError, TypeError):
            return []

    def _left_to_say(self, roles: tuple[str, ...], before: str) -> int:
        """Return how many letters before an answer are not in its prompt, like the space after Vicuna's ASSISTANT:."""
        asked = self._scaffold(roles, True)[-1]
        return len(before) - len(asked) if before.startswith(asked) else 0

    def _end_of_turn(self, after: str) -> str:
        found = self._end.match(after)
        if found is None:
            raise Unusable(f"the chat template writes no special token at the end of an answer, but {after[:20]!r}")
        return found[0]

    def _tokenize(
        self, pieces: list[tuple[str, bool]], spans: list[tuple[int, int]]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokenize the pieces as one text; tokens that end inside `spans` (characters of that text) are targets.

        A sentencepiece token begins with the space before its word, so its end is what counts.
        Special tokens typed by a person are text, not tokens: where one occurs, the text is cut there.
        """
        ids: list[int] = []
        ends: list[int] = []  # of each token, characters of the whole text
        empty: list[int] = []  # numbers of the tokens that stand for no character
        at = 0
        for text, is_typed in _cut_at_typed(pieces, self._special, self.image_token):
            found, offsets = self._coded(text, is_typed)
            empty += [len(ids) + i for i, (first, last) in enumerate(offsets) if first == last]
            ends += [at + last for _, last in offsets]
            ids += found
            at += len(text)
        is_target = np.zeros(len(ids), bool)
        for first, after in spans:
            is_target[bisect.bisect_right(ends, first) : bisect.bisect_right(ends, after)] = True
        if empty:
            is_target[empty] = False
        return np.array(ids, np.int64), is_target

    def _coded(self, text: str, is_typed: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text and the characters that each came from; typed specials are split into letters.

        It is what transformers calls for one text, without the batch around it, which takes longer than the text.
        """
        coder = self.tokenizer.backend_tokenizer
        if coder.encode_special_tokens != is_typed:
            coder.encode_special_tokens = is_typed
        if coder.truncation is not None:
            coder.no_truncation()
        if coder.padding is not None:
            coder.no_padding()
        coded = coder.encode(text, add_special_tokens=False)
        return coded.ids, coded.offsets

    def _begun(
        self, ids: NDArray[np.int64], is_target: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return them from the first token on, each picture's as often as it takes."""
        left_out = self._bos_left_out
        if left_out:
            ids = np.concatenate((np.array(left_out, np.int64), ids))
            is_target = np.concatenate((np.zeros(len(left_out), bool), is_target))
        return self._expand(ids, is_target)

    def _expand(
        self, ids: NDArray[np.int64], is_target: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Repeat each picture's token as often as the tower gives tokens for it."""
        pictures = np.flatnonzero(ids == self.image_id)
        if not len(pictures):
            return ids, is_target
        times = np.ones(len(ids), np.int64)
        times[pictures] = self.image_tokens
        return ids.repeat(times), is_target.repeat(times)


def check(turns: tuple[Turn, ...], images: int) -> None:
    """Check what every sample must fulfil.

    Raises Reject, naming the fault.
    """
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken or len(spoken) % 2 or [turn.role for turn in spoken] != ["user", "assistant"] * (len(spoken) // 2):
        raise Reject("roles", "turns do not alternate human, gpt: " + ", ".join(turn.role for turn in turns))
    for number, turn in enumerate(turns):
        if not turn.text.isascii() and SURROGATE.search(turn.text):
            raise Reject("text", f"turn {number} holds half a character (a lone surrogate)")
        if turn.role == "assistant" and not turn.text.strip():
            raise Reject("empty_answer", f"turn {number} is an answer without text")
        if turn.role != "user" and IMAGE in turn.text:
            raise Reject("image_count", f"turn {number} is no question but holds {IMAGE}")
    if _images_in(turns) != images:
        raise Reject("image_count", f"{_images_in(turns)} {IMAGE} for {images} pictures")


def _image_tokens(config: Mapping[str, Any]) -> int:
    """Return the tokens of a picture where the config does not say them: the patches, and CLIP's class token if kept."""
    tower = config["vision_config"]
    patches = (tower["image_size"] // tower["patch_size"]) ** 2
    keeps_class = config.get("vision_feature_select_strategy") == "full" and "siglip" not in tower["model_type"]
    return patches + keeps_class


def _images_in(turns: tuple[Turn, ...]) -> int:
    return sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")


def _cut_at_typed(pieces: list[tuple[str, bool]], special: re.Pattern[str], image_token: str) -> list[tuple[str, bool]]:
    """Join the pieces into the longest texts that may be tokenized at once, with whether they are typed specials."""
    texts = [("", False)]
    for text, is_scaffold in pieces:
        start = 0
        for found in [] if is_scaffold else special.finditer(text):
            if found[0] == image_token:
                continue
            texts[-1] = (texts[-1][0] + text[start : found.start()], False)
            texts += [(found[0], True), ("", False)]
            start = found.end()
        texts[-1] = (texts[-1][0] + text[start:], False)
    return [(text, is_typed) for text, is_typed in texts if text]
