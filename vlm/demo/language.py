"""A Qwen2 language model from nothing, with its own tokenizer: it reads text and never sees a picture.

Two things make it learn in a minute to look up what a text says. A phrase of the context is read folded, as
the sum of its tokens' embeddings, which is how a patch of a picture will come to it: all in one place. And
attention starts out looking for likeness: each query matrix begins as its key matrix, mostly.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from vlm.demo.prose import Span, write_document
from vlm.demo.questions import LOOKUPS
from vlm.demo.tokenizer import train_tokenizer
from vlm.demo.training import THREADS, Training, descend

IGNORED = -100
WINDOW = 16  # batches whose documents are sorted by length together


@dataclass(frozen=True)
class LanguageSettings:
    """Sizes of the language model and of its training."""

    tokens: int = 400  # of the tokenizer
    rows: int = 448  # of the embedding: some to spare for tokens added later
    width: int = 128
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    rope_theta: float = 1e6
    init_std: float = 0.05
    likeness: float = 0.7  # of a query matrix to its key matrix, and of an output matrix to its values', at first
    fold_noise: float = 0.2  # of a folded phrase's own size
    turns: int = 4  # questions in a document
    lookup_share: float = 0.25  # of the steps, the first, ask for single traits only
    matrix_lr: float = 1e-2  # Muon's, for the matrices; the rest takes training.lr
    training: Training = Training(steps=1300, batch=16, lr=2e-3)
    tokenizer_documents: int = 2_000


@dataclass(frozen=True)
class Reading:
    """An encoded document of L positions: T tokens, the position each is read at, and L targets."""

    ids: list[int]
    positions: list[int]
    targets: list[int]


def train_language_model(folder: Path, seed: int, settings: LanguageSettings | None = None) -> None:
    """Train a tokenizer and a model on text alone and save both in `folder`."""
    settings = settings or LanguageSettings()
    torch.set_num_threads(THREADS)
    rng = random.Random(f"{seed} language model")
    samples = (write_document(rng, seed, settings.turns) for _ in range(settings.tokenizer_documents))
    tokenizer = train_tokenizer((span.text for document in samples for span in document), settings.tokens)
    torch.manual_seed(seed)
    model = build_model(tokenizer, settings)
    batches = _write_batches(tokenizer, rng, seed, settings)

    def loss_of_step(step: int) -> Tensor:
        embeddings, targets = gather(model, batches[step], settings.fold_noise)
        learnt = targets[:, 1:] != IGNORED
        hidden = model.model(inputs_embeds=embeddings).last_hidden_state[:, :-1]
        return nn.functional.cross_entropy(model.lm_head(hidden[learnt]), targets[:, 1:][learnt])

    descend("language model", settings.training, model.parameters(), _optimizers(model, settings), loss_of_step)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_batches(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, seed: int, settings: LanguageSettings
) -> list[list[Reading]]:
    """The documents of every step; a batch holds documents of like length, so that little of it is filling."""
    steps, batch = settings.training.steps, settings.training.batch
    batches: list[list[Reading]] = []
    bar = tqdm(total=steps, desc="language model: writing", unit=" batches")
    while len(batches) < steps:
        categories = LOOKUPS if len(batches) < settings.lookup_share * steps else ()
        window = min(WINDOW, steps - len(batches))
        documents = [write_document(rng, seed, settings.turns, categories) for _ in range(window * batch)]
        readings = sorted((encode(tokenizer, document) for document in documents), key=lambda each: len(each.targets))
        chunks = [readings[start : start + batch] for start in range(0, len(readings), batch)]
        rng.shuffle(chunks)
        batches += chunks
        bar.update(window)
    bar.close()
    return batches


def build_model(tokenizer: PreTrainedTokenizerFast, settings: LanguageSettings) -> Qwen2ForCausalLM:
    """Return a Qwen2 with random weights."""
    config = Qwen2Config(
        vocab_size=settings.rows,
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_heads,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        max_position_embeddings=2048,
        initializer_range=settings.init_std,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    _start_alike(model, settings)
    return model


@torch.no_grad()
def _start_alike(model: Qwen2ForCausalLM, settings: LanguageSettings) -> None:
    """Let queries resemble keys, so that heads begin by looking at what is like them and passing it on."""
    alike, own = settings.likeness, (1 - settings.likeness**2) ** 0.5
    size = settings.width // settings.heads
    shared = torch.arange(settings.heads) // (settings.heads // settings.key_heads)  # each head's key head
    for layer in model.model.layers:
        attention = layer.self_attn
        keys, values = (
            matrix.weight.unflatten(0, (-1, size))[shared].flatten(0, 1)
            for matrix in (attention.k_proj, attention.v_proj)
        )
        attention.q_proj.weight.mul_(own).add_(alike * keys)
        attention.o_proj.weight.mul_(own).add_(alike * values.T)


def encode(tokenizer: PreTrainedTokenizerFast, document: list[Span]) -> Reading:
    """The document's tokens; those of a folded span share a position, and only learnt ones are targets."""
    reading = Reading([], [], [])
    for span, ids in zip(document, tokenizer([span.text for span in document])["input_ids"], strict=True):
        start, length = len(reading.targets), 1 if span.folded else len(ids)
        reading.ids.extend(ids)
        reading.positions.extend(start if span.folded else start + offset for offset in range(len(ids)))
        reading.targets.extend(ids if span.learnt else [IGNORED] * length)
    return reading


def gather(model: Qwen2ForCausalLM, readings: list[Reading], fold_noise: float) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, D) and targets (B, L), filled up on the right, where causal attention cannot see."""
    rows, length = len(readings), max(len(reading.targets) for reading in readings)
    ids = torch.tensor([token for reading in readings for token in reading.ids])
    slots = torch.tensor(
        [row * length + position for row, reading in enumerate(readings) for position in reading.positions]
    )
    embeddings = model.get_input_embeddings()(ids)
    folded = torch.bincount(slots, minlength=rows * length)[:, None] > 1
    flat = embeddings.new_zeros(rows * length, embeddings.shape[1]).index_add(0, slots, embeddings)
    size = flat.detach().square().mean(1, keepdim=True).sqrt()
    flat = flat + fold_noise * size * folded * torch.randn_like(flat)
    targets = [torch.tensor(reading.targets) for reading in readings]
    padded = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
    return flat.view(rows, length, -1), padded


def _optimizers(model: Qwen2ForCausalLM, settings: LanguageSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, biases and norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=0.01)
    return [muon, torch.optim.AdamW(others, lr=settings.training.lr, weight_decay=0.0, betas=(0.9, 0.98))]
