"""Stage 00: a language model's tokenizer gets one new token, which stands for a picture."""

from pathlib import Path
from typing import Any

from vlm.errors import Unusable
from vlm.model.hub import load, locate

PROBE = "What is this? 这是什么？ 🙂 def f(x): return x<y\n"
CONVERSATION = [{"role": "user", "content": "Describe it."}, {"role": "assistant", "content": "A cat."}]


def patch(source: str, image_token: str, out: Path) -> dict[str, Any]:
    """Add `image_token` to the tokenizer of a language model and save it in `out`; return the headline figures.

    Raises Unusable if the token does not become one id, any other text is tokenized differently afterwards, or
    the chat template does not write a prompt that its answer continues.
    """
    locate(source, "language model")
    from transformers import AddedToken, AutoTokenizer

    tokenizer = load(AutoTokenizer.from_pretrained, source, "tokenizer of the language model")
    before, size = tokenizer.encode(PROBE), len(tokenizer)
    if not set(before) - set(tokenizer.all_special_ids):  # transformers makes an empty one where the files lack
        raise Unusable(f"tokenizer of the language model: {source} holds none")
    known = tokenizer.encode(image_token, add_special_tokens=False)
    if len(known) != 1:
        tokenizer.add_tokens([AddedToken(image_token, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(out)

    saved = load(AutoTokenizer.from_pretrained, str(out), "patched tokenizer")
    found = saved.encode(image_token, add_special_tokens=False)
    if len(found) != 1 or (len(known) != 1 and found[0] < size):
        raise Unusable(f"{image_token} became {found}, not one new id: choose another model.image_token")
    if saved.encode(PROBE) != before:
        raise Unusable("the tokenizer splits other text differently once it was patched and saved")
    if saved.encode(f"a{image_token}b", add_special_tokens=False).count(found[0]) != 1:
        raise Unusable(f"{image_token} is not found inside a text: choose another model.image_token")
    _check_template(saved)
    return {"image_token": image_token, "image_token_id": found[0], "tokens": len(saved)}


def _check_template(tokenizer: Any) -> None:  # noqa: ANN401 - any transformers tokenizer
    """Check that the ids of a prompt are the first ids of the prompt with its answer."""
    if tokenizer.chat_template is None:
        return
    prompt = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    asked = tokenizer.encode(prompt, add_special_tokens=False)
    if tokenizer.encode(whole, add_special_tokens=False)[: len(asked)] != asked:
        raise Unusable("the chat template's prompt is not how the same conversation with its answer begins")
