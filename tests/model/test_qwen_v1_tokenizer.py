import base64
import json
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vlm.errors import Unusable
from vlm.model.qwen_v1_tokenizer import (
    PUBLISHED_RANKS,
    SPECIAL_TOKENS,
    TURN_END,
    build_tokenizer,
    find_merges,
    read_ranks,
    save_tokenizer,
)

CORPUS = (
    "the cat sat on the mat, then the other cat that hates the heat ate 12 of them\n\n    return there's nothing\n"
    "这是什么？这是一只猫。什么猫？一只白猫在椅子上。 🙂🙂 🙃 café naïve aaaaaaaa aaaa    \t\t == != "
) * 2
SPLIT = regex.compile(
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
JOINED = 90


def neighbours_joined(parts: list[bytes], ranks: dict[bytes, int]) -> list[bytes]:
    """Join the two neighbours of the lowest rank, the leftmost of equals, for as long as there are any."""
    while True:
        known = [(ranks[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not known:
            return parts
        _, at = min(known)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]


def ids_by_rank(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Encode as the tiktoken form is defined, with nothing of the module under test."""
    ids = []
    for word in SPLIT.findall(unicodedata.normalize("NFC", text)):
        ids += [ranks[part] for part in neighbours_joined([bytes([b]) for b in word.encode()], ranks)]
    return ids


def learn_ranks() -> dict[bytes, int]:
    """Learn a vocabulary as such vocabularies are learnt: the commonest pair of neighbours gets the next rank."""
    order = [*range(33, 127), *range(33), *range(127, 256)]  # published files do not begin with byte 0 either
    ranks = {bytes([byte]): rank for rank, byte in enumerate(order)}
    words = Counter(tuple(bytes([b]) for b in word.encode()) for word in SPLIT.findall(CORPUS))
    while len(ranks) < 256 + JOINED:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        left, right = pairs.most_common(1)[0][0]
        ranks[left + right] = len(ranks)
        words = Counter({tuple(neighbours_joined(list(word), ranks)): times for word, times in words.items()})
    return ranks


def write_tiktoken(path, tokens):
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def ranks():
    return learn_ranks()


@pytest.fixture(scope="module")
def tokenizer(ranks, tmp_path_factory):
    """The learnt vocabulary, converted, saved and read by AutoTokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = read_ranks(write_tiktoken(folder / "qwen.tiktoken", ranks), 1000)
    out = folder / "out"
    out.mkdir()
    save_tokenizer(build_tokenizer(tokens, find_merges(tokens)), out, TURN_END, 64)
    return AutoTokenizer.from_pretrained(out)


def test_the_learnt_vocabulary_is_worth_the_comparison(ranks):
    assert max(map(len, ranks)) >= 6
    words = set(SPLIT.findall(CORPUS))
    assert sum(len(ids_by_rank(word, ranks)) > 1 for word in words) > 5  # not every word is one token


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(alphabet=sorted(set(CORPUS))), st.text(alphabet="ath ec\n'"), st.text()))
def test_any_text_gets_the_ids_that_the_ranks_give(tokenizer, ranks, text):
    assume(
        not any(token in text for token in SPECIAL_TOKENS)
    )  # hypothesis also tries strings that it finds in the code
    assert tokenizer.encode(text) == ids_by_rank(text, ranks)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_decoding_gives_the_normalised_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_its_own_corpus_gets_the_ids_that_the_ranks_give(tokenizer, ranks):
    ids = tokenizer.encode(CORPUS)
    assert ids == ids_by_rank(CORPUS, ranks)
    assert len(ids) < len(CORPUS.encode()) / 2


def test_special_tokens_follow_the_last_rank_and_are_found_in_text(tokenizer, ranks):
    assert len(SPECIAL_TOKENS) == 208
    assert SPECIAL_TOKENS[:4] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>")
    assert SPECIAL_TOKENS[-1] == "<|extra_204|>"
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [
        *range(len(ranks), len(ranks) + 208)
    ]
    assert tokenizer.encode("a<|extra_7|>b") == [ranks[b"a"], len(ranks) + 10, ranks[b"b"]]
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b"), skip_special_tokens=True) == "ab"
    assert len(tokenizer) == len(ranks) + 208
    assert PUBLISHED_RANKS + 208 == 151_851


def test_the_ends_of_a_turn_and_of_a_text(tokenizer, ranks):
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", len(ranks) + 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", len(ranks))
    assert tokenizer.bos_token is None
    assert tokenizer.model_max_length == 64


def test_the_chat_template_is_that_of_qwen(tokenizer):
    asked = [{"role": "user", "content": "Hi"}]
    answered = [*asked, {"role": "assistant", "content": "Yo"}]
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    prompt = f"{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == prompt
    assert tokenizer.apply_chat_template(answered, tokenize=False) == f"{prompt}Yo<|im_end|>\n"
    given = [{"role": "system", "content": "Be brief."}, *asked]
    assert tokenizer.apply_chat_template(given, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_one_merge_for_each_token_of_more_than_a_byte_in_the_order_of_ranks(ranks):
    tokens = list(ranks)
    merges = find_merges(tokens)
    assert [left + right for left, right in merges] == tokens[256:]
    assert all(ranks[left] < ranks[left + right] > ranks[right] for left, right in merges)


BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("late", [[b"abc", b"ab"], [b"abcd"], [b"ab", b"bc", b"cd", b"de", b"abcde"]])
def test_a_token_that_no_merge_makes_is_refused(late):
    with pytest.raises(Unusable, match="is not made of two of lower rank"):
        find_merges([*BYTES, *late])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda text: text.replace("YWI= 256", "YWI= 257"), "line 257: not a token in base64 and the rank 256"),
        (lambda text: text.replace("YWI= 256", "YWI 256"), "line 257"),
        (lambda text: text.replace("YWI= 256", "Y*I= 256"), "line 257"),
        (lambda text: text.replace("YWI= 256", "YWI="), "line 257"),
        (lambda text: text.replace("YWI= 256", "YQ== 256"), "there twice"),
        (lambda text: text.splitlines()[0], "256 single bytes"),
        (lambda text: "", "256 single bytes"),
    ],
)
def test_a_damaged_vocabulary_is_refused_in_one_line(tmp_path, change, line):
    path = write_tiktoken(tmp_path / "qwen.tiktoken", [*BYTES, b"ab"])
    path.write_text(change(path.read_text()))
    with pytest.raises(Unusable, match=line) as fault:
        read_ranks(path, 1000)
    assert "\n" not in str(fault.value)


def test_a_vocabulary_that_does_not_fit_its_model_is_refused(tmp_path):
    path = write_tiktoken(tmp_path / "qwen.tiktoken", BYTES)
    assert len(read_ranks(path, 256 + 208)) == 256
    with pytest.raises(Unusable, match="do not fit 463 rows"):
        read_ranks(path, 256 + 207)
    with pytest.raises(Unusable, match="cut short"):
        read_ranks(path, 151_936)
    with pytest.raises(Unusable, match="is not there"):
        read_ranks(tmp_path / "none", 151_936)


def test_the_files_name_each_special_token_for_other_readers(ranks, tmp_path):
    tokens = list(ranks)
    save_tokenizer(build_tokenizer(tokens, find_merges(tokens)), tmp_path, TURN_END, 64)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "Qwen2Tokenizer"
    named = {int(at): token["content"] for at, token in written["added_tokens_decoder"].items()}
    assert named == dict(enumerate(SPECIAL_TOKENS, start=len(tokens)))
