"""The vocabulary of Qwen v1 (`qwen.tiktoken`) as a native fast tokenizer: byte-level BPE with merges.

The file has one token a line: its bytes in base64, a space, its rank. A rank is both the token's id and its
priority: text is encoded by joining, again and again, the two neighbours whose bytes together have the lowest
rank, the leftmost of equals. A native BPE has a list of pairs instead. The pair of a token is found by encoding its
bytes with the tokens of lower rank alone, which must leave exactly two parts. Where that holds for all tokens, both
forms encode every text alike: when two neighbours that make up a token stand side by side, no join has crossed the
token's ends, so its inside was joined in the order in which the token alone would be, and they are its pair.

The 208 special tokens follow the last rank (in the published vocabulary from 151643 to 151850).
"""

import base64
import binascii
import json
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlm.errors import Unusable

VOCABULARY = "qwen.tiktoken"
PUBLISHED_RANKS = 151_643
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, *(f"<|extra_{number}|>" for number in range(205)))
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% if messages and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read_ranks(path: Path, rows: int) -> list[bytes]:
    """Return the tokens of a tiktoken file in the order of their ranks, for a model of `rows` embedding rows.

    Raises Unusable if the file is not there, a line is not a token and the next rank, a token or one of the 256
    single bytes is missing or there twice, the special tokens would not fit into the rows, or it is not the whole
    published vocabulary although the rows are those of a published model.
    """
    if not path.is_file():
        raise Unusable(f"{path} is not there: it is the tokenizer of a Qwen v1 model")
    tokens = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            token, rank = line.split()
            tokens.append(base64.b64decode(token, validate=True))
            if int(rank) != number:
                raise ValueError
        except (ValueError, binascii.Error):
            raise Unusable(f"{path}, line {number + 1}: not a token in base64 and the rank {number}") from None
    known = set(tokens)
    if len(known) != len(tokens) or b"" in known or not known.issuperset(bytes([byte]) for byte in range(256)):
        raise Unusable(f"{path}: a token is there twice, or one of the 256 single bytes is not there")
    if rows >= PUBLISHED_RANKS and len(tokens) != PUBLISHED_RANKS:
        raise Unusable(f"{path} holds {len(tokens)} tokens, not the {PUBLISHED_RANKS} of Qwen: is it cut short?")
    if len(tokens) + len(SPECIAL_TOKENS) > rows:
        raise Unusable(f"{path}: {len(tokens)} tokens and {len(SPECIAL_TOKENS)} special ones do not fit {rows} rows")
    return tokens


def find_merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the pair that each token of more than one byte is joined from, in the order of the ranks.

    Raises Unusable if a token is not made of two tokens of lower rank.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) == 1:
            continue
        parts = _encode(token, ranks, rank)
        if len(parts) != 2:
            raise Unusable(f"{VOCABULARY}: token {rank} is not made of two of lower rank: no merge makes it")
        merges.append((parts[0], parts[1]))
    return merges


def build_tokenizer(tokens: list[bytes], merges: list[tuple[bytes, bytes]]) -> Tokenizer:
    """Return the tokenizer, with its special tokens after the last rank."""
    letters = _letters()
    spelled = ["".join(letters[byte] for byte in token) for token in tokens]
    spelling = dict(zip(tokens, spelled, strict=True))
    pairs = [(spelling[left], spelling[right]) for left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab={token: rank for rank, token in enumerate(spelled)}, merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path, end: str, max_tokens: int) -> None:
    """Write the files that AutoTokenizer reads; `end` is the token that ends an answer."""
    tokenizer.save(str(out / "tokenizer.json"))
    described = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings: dict[str, Any] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **described} for token in SPECIAL_TOKENS
        },
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "errors": "replace",
        "model_max_length": max_tokens,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _encode(text: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Split bytes into tokens, using only tokens of a rank under `below`."""
    parts = [text[at : at + 1] for at in range(len(text))]
    while len(parts) > 1:
        joined = [ranks.get(parts[at] + parts[at + 1], below) for at in range(len(parts) - 1)]
        best = min(joined)
        if best >= below:
            break
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _letters() -> list[str]:
    """Return the visible character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    further = count(256)
    return [chr(byte if byte in visible else next(further)) for byte in range(256)]
