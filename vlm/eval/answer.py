"""Batched greedy answers of a LLaVA folder, the same as one at a time.

The batches are fixed by the questions alone. A run that goes on computes a batch it was killed in as a whole again,
so every answer comes out of the same numbers whether or not the run was killed.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LlavaForConditionalGeneration
from transformers.utils import logging

from vlm.config import Form
from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.data.pixels import Preprocessing, decode, normalise, prepare
from vlm.data.samples import Turn
from vlm.eval.predictions import Prediction, append, appending, read_predictions, write_in_order
from vlm.eval.tasks import Place, Question


@dataclass(frozen=True)
class Batch:
    """B questions of up to L tokens with N pictures in all, in reading order."""

    questions: tuple[Question, ...]
    ids: Tensor  # (B, L) int64, padded on the left
    is_token: Tensor  # (B, L) int64, 0 where padded
    pixels: Tensor | None  # (N, 3, S, S) uint8; None without pictures


class Answerer:
    """A model with what it takes to ask it."""

    def __init__(self, folder: Path, model: LlavaForConditionalGeneration | None = None) -> None:
        """Load a model folder: float32 on a CPU, bfloat16 on a GPU. Or ask a `model` that began as this folder."""
        self.chat = Chat.of_model(folder)
        self.how = Preprocessing.load(folder)
        self.model = _load(folder) if model is None else model
        self.device, self.dtype = self.model.device, self.model.dtype
        self.stop_ids = _stop_ids(self.chat)
        self.pad_id = self.chat.end_id if self.chat.tokenizer.pad_token_id is None else self.chat.tokenizer.pad_token_id

    @torch.no_grad()  # not inference_mode: weights that ZeRO-3 gathers in it could not train afterwards
    def generate(self, batch: Batch, max_new_tokens: int) -> list[list[int]]:
        """Return the most probable token after token, up to the end of the turn, for each question."""
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
        )
        inputs = {"input_ids": batch.ids.to(self.device), "attention_mask": batch.is_token.to(self.device)}
        if batch.pixels is not None:  # transformers does not take None for them
            inputs["pixel_values"] = normalise(batch.pixels.to(self.device), self.how, self.dtype)
        written = self.model.generate(**inputs, generation_config=settings)
        return [self._up_to_stop(ids) for ids in written[:, batch.ids.shape[1] :].tolist()]

    def text(self, ids: list[int]) -> str:
        """Return generated ids as text."""
        return self.chat.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def collate(self, split: Split, asked: Sequence[tuple[Question, tuple[Place, ...]]]) -> Batch:
        """Make a batch of questions and the pictures each is to see; the pictures are read and decoded here."""
        ids, is_token = pad_left([question.prompt for question, _ in asked], self.pad_id)
        read = {
            sample: split.read(sample).pictures for sample in {sample for _, places in asked for sample, _ in places}
        }
        pictures = [prepare(decode(read[sample][i]), self.how) for _, places in asked for sample, i in places]
        pixels = torch.stack(pictures) if pictures else None
        return Batch(tuple(question for question, _ in asked), ids, is_token, pixels)

    def _up_to_stop(self, ids: list[int]) -> list[int]:
        return ids[: next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))]


def answer_all(
    answerer: Answerer,
    split: Split,
    asked: Sequence[tuple[Question, tuple[Place, ...]]],
    path: Path,
    *,
    batch_size: int,
    max_new_tokens: int,
    label: str,
) -> dict[str, str]:
    """Answer what the file at `path` does not answer yet; return all answers by question id.

    The file grows line by line and ends in the order of the questions.
    """
    answers = read_predictions(path)
    order = sorted(range(len(asked)), key=lambda i: (-len(asked[i][0].prompt), i))  # the largest batch comes first
    batches = [[asked[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
    missing = [batch for batch in batches if any(question.id not in answers for question, _ in batch)]
    progress = tqdm(desc=label, total=len(asked), initial=len(answers), unit=" answers")
    with progress, appending(path) as handle:
        for batch in _ahead(answerer, split, missing):
            before = len(answers)
            for question, ids in zip(batch.questions, answerer.generate(batch, max_new_tokens), strict=True):
                if question.id not in answers:
                    answers[question.id] = answerer.text(ids)
                    append(handle, Prediction(question.id, answers[question.id]))
            progress.update(len(answers) - before)
    write_in_order(path, [question.id for question, _ in asked], answers)
    return answers


def pad_left(prompts: Sequence[NDArray[np.int32]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) that end together, and 1 where they are tokens, 0 where they are padding."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    is_token = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        is_token[row, longest - len(prompt) :] = 1
    return ids, is_token


def _load(folder: Path) -> LlavaForConditionalGeneration:
    """Return the model of a folder, ready to answer."""
    on_gpu = torch.cuda.is_available()
    logging.disable_progress_bar()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    loaded = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return loaded.to("cuda" if on_gpu else "cpu").eval()


def _ahead(
    answerer: Answerer, split: Split, batches: Iterable[Sequence[tuple[Question, tuple[Place, ...]]]]
) -> Iterator[Batch]:
    """Yield the batches; while one is answered, the pictures of the next are decoded."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for batch in batches:
            following = pool.submit(answerer.collate, split, batch)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _stop_ids(chat: Chat) -> frozenset[int]:
    """Return the end-of-sequence token and the token that the template writes after an answer."""
    turns = (Turn("user", "?"), Turn("assistant", "!"))
    encoded = chat.encode(turns, 0, Form.chat, max_tokens=1 << 30)
    return frozenset({chat.end_id, int(encoded.ids[encoded.is_target][-1])})
