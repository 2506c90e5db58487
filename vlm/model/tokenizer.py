"""Stage 00: a language model's tokenizer gets one new token, which stands for a picture.

Padding: a tokenizer without a padding token gets a spare special token that it knows already, else its end token.
An end token that pads does no harm here: targets are chosen by where an answer stands, not by id, so the end of an
answer is learnt whatever pads. A padding token of the tokenizer's own is kept, also where it is the end token.
"""

from pathlib import Path
from typing import Any

from vlm.config import ChatTemplate
from vlm.errors import Unusable
from vlm.model.hub import fetch, load, read_config, revision_of

PROBE = "What is this? 这是什么？ 🙂 def f(x): return x<y\n"
CONVERSATION = [{"role": "user", "content": "Describe it."}, {"role": "assistant", "content": "A cat."}]
SPARE = ("<|endoftext|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>")  # to pad with, in this order
TEMPLATES = Path(__file__).with_name("templates")


def patch(source: str, image_token: str, out: Path, template: ChatTemplate | None = None) -> dict[str, Any]:
    """Add `image_token` to the tokenizer of a language model and save it in `out`; return the headline figures.

    Raises Unusable if the token does not become one id, anything else of the tokenizer changes, or the chat
    template is missing or does not write a prompt that its answer continues.
    """
    folder = fetch(source, "language model")
    read_config(folder, source, "language model")
    from transformers import AutoTokenizer

    original = _loaded(AutoTokenizer, folder, source)
    tokenizer = _loaded(AutoTokenizer, folder, source)
    _add(tokenizer, image_token)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _padding(tokenizer)
    _give_template(tokenizer, template, source)
    forget_loading(tokenizer)
    tokenizer.save_pretrained(out)

    saved = load(AutoTokenizer.from_pretrained, str(out), "patched tokenizer")
    image_id = _check_token(original, saved, image_token)
    _check_rest(original, saved, image_token)
    _check_template(saved)
    figures = {
        "image_token": image_token,
        "image_token_id": image_id,
        "tokens": len(saved),
        "pad_token": saved.pad_token,
        "chat_template": template.value if template else "the tokenizer's own",
    }
    return figures | ({"revision": revision} if (revision := revision_of(folder)) else {})


def forget_loading(tokenizer: Any) -> None:  # noqa: ANN401 - any transformers tokenizer
    """Take out how a tokenizer was loaded, offline or not: transformers would save it with what the tokenizer is."""
    for option in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(option, None)


def _loaded(loader: Any, folder: Path, source: str) -> Any:  # noqa: ANN401 - any transformers tokenizer
    tokenizer = load(loader.from_pretrained, str(folder), "tokenizer of the language model")
    if not set(tokenizer.encode(PROBE)) - set(tokenizer.all_special_ids):
        # transformers makes an empty tokenizer where the files lack
        raise Unusable(f"tokenizer of the language model: {source} holds none")
    return tokenizer


def _add(tokenizer: Any, image_token: str) -> None:  # noqa: ANN401 - any transformers tokenizer
    from transformers import AddedToken

    if len(tokenizer.encode(image_token, add_special_tokens=False)) != 1:
        tokenizer.add_tokens([AddedToken(image_token, special=True, normalized=False)], special_tokens=True)


def _padding(tokenizer: Any) -> str:  # noqa: ANN401 - any transformers tokenizer
    known = tokenizer.get_vocab()
    taken = (tokenizer.eos_token, tokenizer.bos_token)
    spare = [token for token in SPARE if token in known and token not in taken]
    if not spare and tokenizer.eos_token is None:
        raise Unusable("tokenizer of the language model: it has no end-of-sequence token, and none to pad with")
    return spare[0] if spare else tokenizer.eos_token


def _give_template(tokenizer: Any, template: ChatTemplate | None, source: str) -> None:  # noqa: ANN401
    """Give the chosen chat template to a tokenizer that has none.

    Raises Unusable if there is none to choose, one too many, or one whose tokens the tokenizer lacks.
    """
    if _writes_text(tokenizer):
        if template is not None:
            raise Unusable(f"the tokenizer of {source} has a chat template of its own: leave out model.chat_template")
        return
    if template is None:
        choices = ", ".join(choice.value for choice in ChatTemplate)
        lacks = "has no chat template" if tokenizer.chat_template is None else "has a chat template that writes no text"
        raise Unusable(f"the tokenizer of {source} {lacks}: choose model.chat_template, one of {choices}")
    if template is ChatTemplate.chatml and not {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.all_special_tokens) | {
        str(token) for token in tokenizer.added_tokens_decoder.values()
    }:
        raise Unusable(
            f"the tokenizer of {source} lacks chatml's <|im_start|> and <|im_end|>: choose model.chat_template=vicuna"
        )
    if tokenizer.eos_token is None:
        raise Unusable(f"the tokenizer of {source} has no end-of-sequence token to end an answer with")
    text = (TEMPLATES / f"{template.value}.jinja").read_text().strip()
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]  # ids of a template are not given one later
    tokenizer.chat_template = ("{{- bos_token -}}" if begins else "") + text


def _writes_text(tokenizer: Any) -> bool:  # noqa: ANN401 - any transformers tokenizer
    """Whether there is a template, and for turns that are text; those of LLaVA folders are for lists of parts."""
    if tokenizer.chat_template is None:
        return False
    try:
        written = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    except Exception:  # jinja raises many kinds, and a template its own
        return False
    return all(message["content"] in written for message in CONVERSATION)


def _check_token(original: Any, saved: Any, image_token: str) -> int:  # noqa: ANN401 - transformers tokenizers
    """Return the id of the picture token, which is one, new unless it was known, and found inside a text."""
    known = original.encode(image_token, add_special_tokens=False)
    found = saved.encode(image_token, add_special_tokens=False)
    if len(found) != 1 or (len(known) != 1 and found[0] in original.get_vocab().values()):
        raise Unusable(f"{image_token} became {found}, not one new id: choose another model.image_token")
    if saved.encode(f"a{image_token}b", add_special_tokens=False).count(found[0]) != 1:
        raise Unusable(f"{image_token} is not found inside a text: choose another model.image_token")
    return found[0]


def _check_rest(original: Any, saved: Any, image_token: str) -> None:  # noqa: ANN401 - transformers tokenizers
    """Check that text, tokens and template are those of the source, but for the picture token and what it lacked."""
    specials = "".join(original.all_special_tokens)
    if any(saved.encode(text) != original.encode(text) for text in (PROBE, specials)):
        raise Unusable("the tokenizer splits other text differently once it was patched and saved")
    before, after = original.get_vocab(), saved.get_vocab()
    after.pop(image_token, None)
    before.pop(image_token, None)
    if before != after:
        changed = sorted(set(before.items()) ^ set(after.items()))[0][0]
        raise Unusable(f"the token {changed} did not survive: its id changed once the tokenizer was patched and saved")
    for role, token in original.special_tokens_map.items():
        if saved.special_tokens_map.get(role) != token:
            raise Unusable(f"the tokenizer's {role} changed from {token} to {saved.special_tokens_map.get(role)}")
    if _writes_text(original) and original.chat_template != saved.chat_template:
        raise Unusable("the tokenizer's chat template changed once it was patched and saved")


def _check_template(tokenizer: Any) -> None:  # noqa: ANN401 - any transformers tokenizer
    """Check that the ids of a prompt are the first ids of the prompt with its answer."""
    prompt = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    asked = tokenizer.encode(prompt, add_special_tokens=False)
    if tokenizer.encode(whole, add_special_tokens=False)[: len(asked)] != asked:
        raise Unusable("the chat template's prompt is not how the same conversation with its answer begins")
