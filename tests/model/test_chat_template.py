import pytest
from transformers import AutoTokenizer

from vlm.config import ChatTemplate
from vlm.model.chat_template import for_parts
from vlm.model.tokenizer import TEMPLATES

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "Which is larger?"}
OF_LISTS = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>' }}{% endfor %}{% endfor %}"


@pytest.fixture(params=["its own", *ChatTemplate, "begins with a line break"])
def tokenizer(request, tiny_tokenizer):
    found = AutoTokenizer.from_pretrained(tiny_tokenizer)
    if request.param == "begins with a line break":
        found.chat_template = "\n  {%- for message in messages %}\n{{ message['content'] }}{% endfor %}"
    elif request.param != "its own":
        found.chat_template = (TEMPLATES / f"{request.param.value}.jinja").read_text().strip()
    return found


def written(tokenizer, template, content):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}]
    talk.append({"role": "user", "content": content})
    return tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([IMAGE, TEXT], "<image>\nWhich is larger?"),
        ([IMAGE, IMAGE, TEXT], "<image>\n<image>\nWhich is larger?"),
        ([TEXT], "Which is larger?"),
        ("as it is", "as it is"),
    ],
)
def test_parts_are_written_as_the_text_that_training_reads(tokenizer, parts, text):
    template = for_parts(tokenizer, "<image>")
    assert written(tokenizer, template, parts) == written(tokenizer, tokenizer.chat_template, text)


def test_a_template_that_takes_parts_is_left_as_it_is_and_so_is_none(tiny_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    for template in (OF_LISTS, None):
        tokenizer.chat_template = template
        assert for_parts(tokenizer, "<image>") == template
