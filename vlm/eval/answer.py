"""Batched answers of a LLaVA model, the same as one at a time.

The batches are fixed by the questions alone. A run that goes on computes a batch it was killed in as a whole again,
so every answer comes out of the same numbers whether or not the run was killed, and on any number of ranks.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LlavaForConditionalGeneration, LogitsProcessorList

from vlm import ranks
from vlm.config import Dtype, Form, SamplingConfig, TaskConfig
from vlm.data.chat import Chat
from vlm.data.pixels import Preprocessing, normalise
from vlm.data.samples import Turn
from vlm.errors import Unusable
from vlm.eval.batch import Ask, Batch, collate, in_batches, pad_left
from vlm.eval.predictions import Prediction, append, appending, part_of, read_parts, write_in_order
from vlm.eval.sampling import Drawn
from vlm.eval.tasks import Pictures
from vlm.eval.write import can_write, write
from vlm.model.restore import restore
from vlm.model.saved import Saved, find

Share = tuple[int, int]  # a rank, and how many there are

GREEDY = SamplingConfig()


class Answerer:
    """A model with what it takes to ask it."""

    def __init__(
        self, saved: Saved | Path, model: LlavaForConditionalGeneration | None = None, dtype: Dtype | None = None
    ) -> None:
        """Load a saved model: float32 on a CPU, bfloat16 on a GPU. Or ask a `model` that began as this folder."""
        saved = Saved(str(saved), saved) if isinstance(saved, Path) else saved
        self.name = saved.name
        self.chat = Chat.of_model(saved.folder)
        self.how = Preprocessing.load(saved.folder)
        self.fingerprint = saved.fingerprint if model is None else ""
        if model is None:
            on_gpu = ranks.device().type == "cuda"
            wanted = dtype or (Dtype.bfloat16 if on_gpu else Dtype.float32)
            model = restore(saved, getattr(torch, wanted.value)).to(ranks.device())
        self.model = model
        self.device, self.dtype = self.model.device, self.model.dtype
        self.is_plain = can_write(self.model)
        self.stop_ids = _stop_ids(self.chat, self.model.generation_config)
        self.pad_id = self.chat.end_id if self.chat.tokenizer.pad_token_id is None else self.chat.tokenizer.pad_token_id

    @classmethod
    def of(cls, name: str, base: str | None = None, dtype: Dtype | None = None) -> "Answerer":
        """Load what `name` means: a Llava folder, hub id, stage 03 or 04, checkpoint or adapter.

        Raises Unusable if it is none of them.
        """
        return cls(find(name, base), dtype=dtype)

    @torch.no_grad()  # not inference_mode: weights that ZeRO-3 gathers in it could not train afterwards
    def generate(
        self, batch: Batch, max_new_tokens: int, sampling: SamplingConfig = GREEDY, seed: int = 0
    ) -> list[list[int]]:
        """Return token after token up to the end of the turn, for each question.

        Raises Unusable if the batch does not fit into the GPU's memory.
        """
        drawn = Drawn(sampling, seed) if sampling.temperature else None
        pixels = batch.pixels
        if pixels is not None:
            pixels = normalise(pixels.to(self.device), self.how, self.dtype)
        try:
            if self.is_plain:
                return write(self.model, batch, pixels, max_new_tokens, self.stop_ids, drawn)
            return self._generate_apart(batch, pixels, max_new_tokens, drawn)
        except torch.OutOfMemoryError:
            raise Unusable(
                f"{len(batch.asks)} questions at once do not fit into the GPU's memory: lower "
                "eval.runtime.batch_size and run again"
            ) from None

    def _generate_apart(
        self, batch: Batch, pixels: Tensor | None, max_new_tokens: int, drawn: Drawn | None
    ) -> list[list[int]]:
        """Let transformers' own `generate` answer, every question in a row of its own, with nothing shared."""
        ids, is_token = pad_left([ask.prompt for ask in batch.asks], self.pad_id)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": is_token.to(self.device)}
        if pixels is not None:  # transformers does not take None for them
            shown = {head: len(ask.places) for head, ask in zip(batch.head_of, batch.asks, strict=True)}
            of_head = pixels.split([shown[head] for head in range(len(shown))])
            inputs["pixel_values"] = torch.cat([of_head[head] for head in batch.head_of])
        drawing = LogitsProcessorList()
        if drawn is not None:
            drawing.append(drawn.as_processor([ask.question.id for ask in batch.asks], ids.shape[1]))
        settings = GenerationConfig(
            do_sample=False,  # what is drawn is drawn by Drawn, question by question
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
        )
        written = self.model.generate(**inputs, generation_config=settings, logits_processor=drawing)
        return [self.up_to_stop(row) for row in written[:, ids.shape[1] :].tolist()]

    def text(self, ids: list[int]) -> str:
        """Return generated ids as text."""
        return self.chat.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def collate(self, samples: Pictures, asks: Sequence[Ask]) -> Batch:
        """Make a batch of questions and the pictures each is to see; the pictures are read and decoded here.

        Raises Unusable if a picture cannot be decoded.
        """
        return collate(samples, asks, self.chat.image_id, self.pad_id, self.how)

    def up_to_stop(self, ids: list[int]) -> list[int]:
        """Return generated ids without the end of the turn and what follows it."""
        return ids[: next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))]


def answer_all(
    answerer: Answerer,
    samples: Pictures,
    asks: Sequence[Ask],
    path: Path,
    task: TaskConfig,
    *,
    seed: int,
    batch_size: int,
    label: str,
    share: Share = (0, 1),
) -> dict[str, Prediction]:
    """Answer what the files at `path` do not answer yet; return all predictions by question id.

    Each rank appends the answers to its share of the batches to a file of its own; the first rank joins them in the
    order of the questions. Raises Unusable if the files hold answers of another model, or to other questions.
    """
    rank, world = share
    asked = {ask.question.id: _asked(ask, task, seed) for ask in asks}
    found = read_parts(path, answerer.fingerprint, asked)
    if world > 1:
        ranks.barrier()  # nobody appends before all have read
    batches = in_batches(asks, batch_size)
    missing = [batch for batch in batches if any(ask.question.id not in found for ask in batch)]
    bar = tqdm(desc=label, total=len(asks), initial=len(found), unit=" answers", disable=rank > 0)
    with bar, appending(part_of(path, rank)) as handle:
        for batch in _ahead(answerer, samples, missing[rank::world]):
            written = answerer.generate(batch, task.max_new_tokens, task.sampling, seed)
            new = [
                Prediction(identity, answerer.text(ids), len(ids), answerer.fingerprint, asked[identity])
                for identity, ids in zip((ask.question.id for ask in batch.asks), written, strict=True)
                if identity not in found
            ]
            append(handle, new)
            found |= {one.question_id: one for one in new}
            bar.update(min(len(new) * world, bar.total - bar.n))
    if world > 1:
        ranks.barrier()
        found = read_parts(path, answerer.fingerprint, asked)
        ranks.barrier()  # nobody takes the files away before all have read
    if rank == 0:
        write_in_order(path, (found[ask.question.id] for ask in asks))
    return found


def _asked(ask: Ask, task: TaskConfig, seed: int) -> str:
    """Return 12 hex digits over what decides an answer besides the model."""
    shown = [*ask.question.pictures, *ask.places]
    how = (task.max_new_tokens, asdict(task.sampling), seed if task.sampling.temperature else 0)
    return hashlib.sha256(ask.prompt.tobytes() + repr((shown, how)).encode()).hexdigest()[:12]


def _ahead(answerer: Answerer, samples: Pictures, batches: Iterable[Sequence[Ask]]) -> Iterator[Batch]:
    """Yield the batches; while one is answered, the pictures of the next are decoded."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for batch in batches:
            following = pool.submit(answerer.collate, samples, batch)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _stop_ids(chat: Chat, generation: GenerationConfig | None) -> frozenset[int]:
    """Return the end-of-sequence token, the model's own, and the token that the template writes after an answer."""
    own = getattr(generation, "eos_token_id", None)
    stops = {chat.end_id, *([own] if isinstance(own, int) else own or [])}
    turns = (Turn("user", "?"), Turn("assistant", "!"))
    try:
        encoded = chat.encode(turns, 0, Form.chat, max_tokens=1 << 30)
    except Unusable:  # a template that ends an answer with a space, as that of llava-1.5 does
        return frozenset(stops)
    return frozenset({*stops, int(encoded.ids[encoded.is_target][-1])})
