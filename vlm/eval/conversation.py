"""A talk with a model: turns and pictures in, the answer out while it is written.

The prompt is what the folder's own chat template writes and the pictures go through its own processor, as in training.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from vlm.data.pictures import inspect
from vlm.data.pixels import decode, normalise, prepare
from vlm.data.samples import IMAGE, Reject, Turn
from vlm.errors import Unusable
from vlm.eval.answer import Answerer
from vlm.eval.batch import pad_left

MAX_PIXELS = 178_956_970  # of a picture, as Pillow's own limit: beyond it a small file fills the memory


@dataclass(frozen=True)
class Writing:
    """How an answer is written."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: always the most probable token
    top_p: float = 1.0  # sample from the fewest tokens that hold this share
    repetition_penalty: float = 1.0  # above 1, tokens that were written before become less probable
    seed: int = 0  # of the sampling: the same talk with the same seed gets the same answer

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise Unusable(f"{self.max_new_tokens} new tokens are no answer: give at least 1")
        if self.temperature < 0:
            raise Unusable(f"the temperature is {self.temperature:g}: give 0 or more")
        if not 0 < self.top_p <= 1:
            raise Unusable(f"top_p is {self.top_p:g}: give a share above 0, up to 1")
        if self.repetition_penalty <= 0:
            raise Unusable(f"the repetition penalty is {self.repetition_penalty:g}: give a number above 0")


def question(text: str, pictures: int = 0) -> Turn:
    """Return what a person says, its pictures before its words.

    Raises Unusable if the text is empty or holds the placeholder of a picture.
    """
    if not text.strip():
        raise Unusable("the question is empty")
    if IMAGE in text:
        raise Unusable(
            f"the question holds {IMAGE}, which stands for a picture: leave it out, and add the picture itself"
        )
    return Turn("user", f"{IMAGE}\n" * pictures + text.strip())


def pixels_of(answerer: Answerer, data: bytes, name: str) -> Tensor:
    """Return a picture's file as the tower's input before normalisation, uint8 (3, S, S).

    Raises Unusable if it is no picture.
    """
    try:
        return prepare(decode(inspect(data, MAX_PIXELS).data), answerer.how)
    except Reject as problem:
        raise Unusable(f"{name} cannot be used as a picture: {problem.detail}") from None


def stream(answerer: Answerer, turns: Sequence[Turn], pictures: Sequence[Tensor], how: Writing) -> Iterator[str]:
    """Yield the answer to the last turn as it grows; each time all of it so far. Closing the iterator stops the model.

    `pictures` are those of all turns, in order, each uint8 (3, S, S).
    Raises Unusable if the talk is longer than the model reads.
    """
    ids, is_token = pad_left([_prompt(answerer, turns, how)], answerer.pad_id)
    streamer = TextIteratorStreamer(answerer.chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = _Stop()
    failures: list[Exception] = []

    def work() -> None:
        try:
            _generate(answerer, ids, is_token, pictures, how, streamer=streamer, stopping_criteria=stop.as_list())
        except Exception as problem:  # said where the answer is read
            failures.append(problem)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    written = ""
    try:
        for piece in streamer:
            written += piece
            yield written.strip()
    finally:
        stop.asked.set()
        thread.join()
    if failures:
        raise failures[0]


def answer_each(answerer: Answerer, prompt: str, pictures: Sequence[Tensor], how: Writing) -> list[str]:
    """Return the answers to one prompt about each of the pictures, asked side by side."""
    ids, is_token = pad_left([_prompt(answerer, [question(prompt, 1)], how)] * len(pictures), answerer.pad_id)
    written = _generate(answerer, ids, is_token, pictures, how)
    return [answerer.text(answerer.up_to_stop(row)) for row in written[:, ids.shape[1] :].tolist()]


def _prompt(answerer: Answerer, turns: Sequence[Turn], how: Writing) -> NDArray[np.int64]:
    """Return the ids that ask for the next answer, (L,)."""
    ids = answerer.chat.prompt(tuple(turns))
    room = answerer.model.config.text_config.max_position_embeddings
    if len(ids) + how.max_new_tokens > room:
        raise Unusable(
            f"the talk has {len(ids):,} tokens, with an answer up to {len(ids) + how.max_new_tokens:,}; the model reads "
            f"{room:,}: begin a new one, or ask for fewer new tokens"
        )
    return ids


def _generate(
    answerer: Answerer,
    ids: Tensor,
    is_token: Tensor,
    pictures: Sequence[Tensor],
    how: Writing,
    streamer: TextIteratorStreamer | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
) -> Tensor:
    """Return prompts and answers as ids, (B, L + new).

    Raises Unusable if they do not fit into the GPU's memory.
    """
    sampling = {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0} if how.temperature else {}
    settings = GenerationConfig(
        do_sample=how.temperature > 0,
        max_new_tokens=how.max_new_tokens,
        repetition_penalty=how.repetition_penalty,
        eos_token_id=list(answerer.stop_ids),
        pad_token_id=answerer.pad_id,
        **sampling,
    )
    inputs = {"input_ids": ids.to(answerer.device), "attention_mask": is_token.to(answerer.device)}
    if pictures:  # transformers does not take None for them
        inputs["pixel_values"] = normalise(
            torch.stack(list(pictures)).to(answerer.device), answerer.how, answerer.dtype
        )
    torch.manual_seed(how.seed)
    try:
        return answerer.model.generate(
            **inputs, generation_config=settings, streamer=streamer, stopping_criteria=stopping_criteria
        )
    except torch.OutOfMemoryError:
        raise Unusable(
            f"{len(ids)} talks of {ids.shape[1]:,} tokens do not fit into the GPU's memory at once"
        ) from None


class _Stop(StoppingCriteria):
    """Ends an answer that nobody waits for any more."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def as_list(self) -> StoppingCriteriaList:
        return StoppingCriteriaList([self])

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), device=input_ids.device)
