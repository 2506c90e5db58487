"""Answers of many questions, token after token, each the most probable one or as it is drawn.

The questions lie in rows as `vlm.eval.batch` puts them. Every column of a row belongs to one question, or to all: those
of the head. What a token sees is the head and the earlier columns of its own question, just as if it were asked alone.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer, LlavaForConditionalGeneration

from vlm.eval.batch import NOBODY, Batch
from vlm.eval.sampling import Drawn
from vlm.model.attention import PACKED, sent
from vlm.model.forward import splice, tower_features
from vlm.model.tower import HAS_CLS

ALL = -2  # whom the columns of a head belong to
FULL = "full_attention"  # in a config's layer_types
AHEAD = 8  # tokens of each answer that memory is taken for at once

# Settings of a generation config that do not bear on the most probable token, or are asked for by their own names.
HARMLESS = {"bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p", "max_length"}
HARMLESS |= {"max_new_tokens", "use_cache", "transformers_version", "_from_model_config"}


def can_write(model: LlavaForConditionalGeneration) -> bool:
    """Say whether `write` gives a model's answers: a known tower, rotary positions, attention to all, no more rules.

    Others, such as those with a sliding window or a penalty on repetition, are left to transformers' `generate`.
    """
    config, text = model.config, model.config.text_config
    return (
        config.vision_config.model_type in HAS_CLS
        and isinstance(config.vision_feature_layer, int)
        and hasattr(model.model.language_model, "rotary_emb")
        and model.model.language_model.config._attn_implementation in ("eager", "sdpa", PACKED)
        and set(getattr(text, "layer_types", None) or [FULL]) == {FULL}
        and not getattr(text, "sliding_window", None)
        and not set(model.generation_config.to_diff_dict()) - HARMLESS
    )


def write(
    model: LlavaForConditionalGeneration,
    batch: Batch,
    pixels: Tensor | None,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    drawn: Drawn | None,
) -> list[list[int]]:
    """Return the new tokens of each question, up to the end of its turn.

    pixels   (N, 3, S, S) normalised, those of the heads
    drawn    None: the most probable token
    """
    rows = _Rows(model, batch, pixels)
    hidden = rows.read(batch.tail_ids, batch.tail_of, batch.tail_positions)  # (R, T, D)
    going = list(range(len(batch.asks)))
    ends = {number: at for at, number in enumerate(batch.tail_of.flatten().tolist())}
    places = [ends[number] for number in going]  # of the last token of each tail in R·T
    written: list[list[int]] = [[] for _ in going]
    for length in range(max_new_tokens):
        logits = model.lm_head(hidden.flatten(0, 1)[places]).float()
        if drawn is not None:
            logits = drawn(logits, [batch.asks[number].question.id for number in going], length)
        tokens = logits.argmax(-1).tolist()
        for number, token in zip(going, tokens, strict=True):
            written[number].append(token)
        going = [number for number, token in zip(going, tokens, strict=True) if token not in stop_ids]
        if not going or length + 1 == max_new_tokens:
            break
        hidden, places = rows.read_next(going, [written[number][-1] for number in going], length)
    return [ids[:-1] if ids[-1] in stop_ids else ids for ids in written]


class _Rows:
    """What has been read of a batch: keys and values of R rows, and the question that each column belongs to."""

    def __init__(self, model: LlavaForConditionalGeneration, batch: Batch, pixels: Tensor | None) -> None:
        self.model = model
        self.row_of = {number: row for row, numbers in enumerate(batch.rows) for number in numbers}
        self.lengths = [len(ask.prompt) for ask in batch.asks]
        heads = [batch.head_of[numbers[0]] for numbers in batch.rows]
        spare = batch.tail_ids.shape[1] + AHEAD * max(map(len, batch.rows))
        self.cache = Cache(layer_class_to_replicate=lambda: _Roomy(spare))
        self._read_heads(batch, pixels)
        if heads != list(range(len(batch.head_ids))):
            self.cache.batch_select_indices(torch.tensor(heads, device=model.device))
        self.owners = torch.where(batch.head_is_token[heads] > 0, ALL, NOBODY).to(model.device)  # (R, K)

    def read(self, ids: Tensor, owners: Tensor, positions: Tensor) -> Tensor:
        """Add columns (R, n) to the rows; return their hidden states, (R, n, D)."""
        ids, owners, positions = (one.to(self.model.device) for one in (ids, owners, positions))
        before = self.owners.shape[1]
        self.owners = torch.cat([self.owners, owners], dim=1)
        is_seen = (self.owners[:, None] == ALL) | (self.owners[:, None] == owners[:, :, None])  # (R, n, K)
        is_seen &= torch.ones_like(is_seen[0]).tril(before)
        mask = torch.zeros(is_seen.shape, dtype=self.model.dtype, device=ids.device)
        mask.masked_fill_(~is_seen, torch.finfo(mask.dtype).min)
        return self.model.model.language_model(
            inputs_embeds=self.model.model.get_input_embeddings()(ids),
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def read_next(self, going: Sequence[int], tokens: Sequence[int], length: int) -> tuple[Tensor, list[int]]:
        """Add the `length`-th token of each question that goes on; return hidden states (R, n, D) and places in R·n."""
        of_row = Counter(self.row_of[number] for number in going)
        columns = max(of_row.values())
        free = [row * columns for row in range(len(self.owners))]
        places = []
        for number in going:
            places.append(free[self.row_of[number]])
            free[self.row_of[number]] += 1
        ids, owners, positions = (torch.full((len(self.owners), columns), filler) for filler in (0, NOBODY, 0))
        ids.view(-1)[places] = torch.tensor(tokens)
        owners.view(-1)[places] = torch.tensor(going)
        positions.view(-1)[places] = torch.tensor([self.lengths[number] + length for number in going])
        return self.read(ids, owners, positions), places

    def _read_heads(self, batch: Batch, pixels: Tensor | None) -> None:
        ids, is_token = batch.head_ids.to(self.model.device), batch.head_is_token.to(self.model.device)
        places = (batch.head_ids.flatten() == self.model.config.image_token_id).nonzero().flatten()
        llava = self.model.model
        words = llava.get_input_embeddings()(ids)
        if pixels is not None:
            patches = llava.multi_modal_projector(tower_features(self.model, pixels))
            words = splice(words.view(1, -1, words.shape[-1]), patches, sent(places, self.model.device)).view_as(words)
        llava.language_model(
            inputs_embeds=words,
            attention_mask=None if batch.head_is_token.all() else is_token,
            position_ids=(is_token.cumsum(-1) - 1).clamp(min=0),  # as generate counts them
            past_key_values=self.cache,
            use_cache=True,
        )


class _Roomy(DynamicLayer):
    """Keys and values in memory that is taken ahead of them: a few columns more do not move all that came before."""

    def __init__(self, spare: int) -> None:
        super().__init__()
        self.spare = spare
        self.stores: list[Tensor] = []  # those of keys and values, (R, heads, columns and room for more, D)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Add columns (R, heads, n, D); return all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if not self.stores or self.stores[0].shape[-2] < end:
            self.stores = [
                _moved(held, states, end + self.spare)
                for held, states in ((self.keys, key_states), (self.values, value_states))
            ]
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store[:, :, begin:end] = states
        self.keys, self.values = (store[:, :, :end] for store in self.stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take these rows, in this order."""
        length = self.get_seq_length()
        self.stores = [store.index_select(0, indices) for store in self.stores]
        self.keys, self.values = (store[:, :, :length] for store in self.stores)


def _moved(held: Tensor, like: Tensor, room: int) -> Tensor:
    """Return memory for `room` columns of states such as `like`, with what is held in it."""
    store = like.new_empty(*like.shape[:2], room, like.shape[3])
    if held.numel():
        store[:, :, : held.shape[-2]] = held
    return store
