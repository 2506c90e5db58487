"""Chat templates for messages of parts: {"type": "image"} and {"type": "text", "text": …} beside plain text.

A language model's template writes text alone. transformers' pipelines, and servers, hand over parts; they are joined
to the text that training read, each picture's placeholder on a line before the words, and the template goes on as ever.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from vlm.errors import Unusable

# It ends with an expression, after which Jinja keeps a template's first line break.
JOIN = (
    "{%- set joined = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string or message['content'] is not iterable -%}"
    "{%- set joined.messages = joined.messages + [message] -%}"
    "{%- else -%}"
    "{%- set joined.text = '' -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] in ['image', 'image_url'] -%}{%- set joined.text = joined.text + 'IMAGE\n' -%}"
    "{%- elif 'text' in part -%}{%- set joined.text = joined.text + part['text'] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set joined.messages = joined.messages + [dict(message, content=joined.text | trim)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = joined.messages -%}{{ '' }}"
)
TALK = [("user", "What is it?"), ("assistant", "A cat."), ("user", " And this?\n")]


def for_parts(tokenizer: PreTrainedTokenizerBase, image_token: str) -> str | None:
    """Return the tokenizer's chat template so that it takes parts, too; as it is if it has none, or takes them.

    Raises Unusable if it then wrote other text for the same conversation.
    """
    template = tokenizer.chat_template
    if template is None or image_token in _written(tokenizer, template, _of_parts(), ""):
        return template
    joined = JOIN.replace("IMAGE\n", f"{image_token}\\n") + template
    plain = [{"role": role, "content": text} for role, text in TALK]
    if _written(tokenizer, joined, plain) != _written(tokenizer, template, plain):
        raise Unusable("the tokenizer's chat template writes other text once messages of parts are joined for it")
    return joined


def _of_parts() -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]


def _written(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict[str, Any]], otherwise: str | None = None
) -> str:
    """Return what a template writes; `otherwise`, if it is given, where the template cannot write it."""
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception:  # jinja raises many kinds, and a template its own
        if otherwise is None:
            raise
        return otherwise
