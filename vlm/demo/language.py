"""A Qwen2 language model from nothing, with its own tokenizer: it reads text and never sees a picture."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from vlm.demo.prose import END, END_TURN, START_TURN, SYSTEM, Document, write_document
from vlm.demo.training import Training, descend

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORED = -100


@dataclass(frozen=True)
class LanguageSettings:
    tokens: int = 400  # of the tokenizer
    rows: int = 448  # of the embedding: some to spare for tokens added later
    width: int = 128
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    init_std: float = 0.1
    turns: int = 4  # questions in a document
    matrix_lr: float = 5e-3  # Muon's, for the matrices; the rest takes training.lr
    training: Training = Training(steps=700, batch=16, lr=2e-3)
    tokenizer_documents: int = 2_000


def train_language_model(folder: Path, seed: int, settings: LanguageSettings | None = None) -> None:
    """Train a tokenizer and a model on text alone and save both in `folder`."""
    settings = settings or LanguageSettings()
    rng = random.Random(f"{seed} language model")
    tokenizer = train_tokenizer(rng, seed, settings)
    torch.manual_seed(seed)
    model = build_model(tokenizer, settings)
    count = settings.training.steps * settings.training.batch
    bar = tqdm(range(count), desc="language model: writing", unit=" documents")
    documents = [encode(tokenizer, write_document(rng, seed, settings.turns)) for _ in bar]

    def loss_of_step(step: int) -> Tensor:
        ids, targets = pad(
            documents[step * settings.training.batch :][: settings.training.batch], tokenizer.pad_token_id
        )
        hidden = model.model(ids).last_hidden_state[:, :-1]
        learnt = targets[:, 1:] != IGNORED
        return nn.functional.cross_entropy(model.lm_head(hidden[learnt]), targets[:, 1:][learnt])

    descend("language model", settings.training, model.parameters(), _optimizers(model, settings), loss_of_step)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(rng: random.Random, seed: int, settings: LanguageSettings) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the three special tokens and the chat template of Qwen's first chat models."""
    specials = [END, START_TURN, END_TURN]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.tokens,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = (write_document(rng, seed, settings.turns) for _ in range(settings.tokenizer_documents))
    bpe.train_from_iterator((text for document in documents for text, _ in document), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_TURN,
        pad_token=END,
        additional_special_tokens=[START_TURN, END_TURN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, settings: LanguageSettings) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=settings.rows,
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_heads,
        max_position_embeddings=2048,
        initializer_range=settings.init_std,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    return model


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[int]]:
    """The document's tokens, and the same with IGNORED where nothing is learnt."""
    ids: list[int] = []
    targets: list[int] = []
    for (_, learnt), span in zip(document, tokenizer([text for text, _ in document])["input_ids"], strict=True):
        ids += span
        targets += span if learnt else [IGNORED] * len(span)
    return ids, targets


def pad(documents: list[tuple[list[int], list[int]]], filler: int) -> tuple[Tensor, Tensor]:
    """Documents as ids and targets (B, L), filled up on the right, where causal attention cannot see."""
    rows = nn.utils.rnn.pad_sequence
    ids = rows([torch.tensor(ids) for ids, _ in documents], batch_first=True, padding_value=filler)
    return ids, rows([torch.tensor(targets) for _, targets in documents], batch_first=True, padding_value=IGNORED)


def _optimizers(model: Qwen2ForCausalLM, settings: LanguageSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, biases and norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=0.01)
    return [muon, torch.optim.AdamW(others, lr=settings.training.lr, weight_decay=0.0, betas=(0.9, 0.98))]
