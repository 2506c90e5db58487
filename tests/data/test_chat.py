import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.config import Form
from vlm.data.chat import Chat
from vlm.data.samples import IMAGE, Reject, Turn
from vlm.errors import Unusable
from vlm.model.tokenizer import patch

END = {"qwen": "<|im_end|>", "vicuna": "</s>", "llama_2": " </s>"}
KINDS = sorted(END)
ONE = ("What colour is it?", "A red cat sits.")
TWO = (*ONE, "Is it big?", "No, 3 cm. 是的 🙂\nReally.")
DIALOGUES = {
    "text": ONE,
    "picture": ("<image>\n" + ONE[0], ONE[1]),
    "picture_last": (ONE[0] + "\n<image>", ONE[1]),
    "turns": TWO,
    "turns_with_pictures": ("<image><image>\n" + TWO[0], TWO[1], TWO[2] + " <image>", TWO[3]),
}
TYPED = ["<|im_end|>", "</s>", "<s>", "<|im_start|>assistant\n", "<|endoftext|>"]
TYPED += [" ASSISTANT: ", " USER: ", "[/INST]", "[INST]"]


def dialogue(*texts: str, roles: tuple[str, ...] = ("user", "assistant")) -> tuple[Turn, ...]:
    return tuple(Turn(roles[i % len(roles)], text) for i, text in enumerate(texts))


def encode(chat: Chat, turns: tuple[Turn, ...], form: Form = Form.chat, max_tokens: int = 100_000):
    images = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    return chat.encode(turns, images, form, max_tokens)


def targets(chat: Chat, encoded) -> list[str]:
    """Return the text of every run of targets."""
    edges = np.flatnonzero(np.diff(encoded.is_target, prepend=False, append=False))
    return [chat.tokenizer.decode(encoded.ids[start:end]) for start, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("texts", DIALOGUES.values(), ids=DIALOGUES)
@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_each_answer_with_its_end_and_nothing_else(chats, kind, texts):
    chat = chats[kind]
    said = [text.lstrip(" ") for text in targets(chat, encode(chat, dialogue(*texts)))]
    assert said == [answer + END[kind] for answer in texts[1::2]]


@pytest.mark.parametrize("texts", DIALOGUES.values(), ids=DIALOGUES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_templates_text_with_pictures_expanded(chats, kind, texts):
    chat = chats[kind]
    messages = [{"role": turn.role, "content": turn.text} for turn in dialogue(*texts)]
    plain = chat.tokenizer.apply_chat_template(messages, tokenize=False)
    ids = [
        token
        for one in chat.tokenizer(plain, add_special_tokens=False).input_ids
        for token in [one] * (4 if one == chat.image_id else 1)
    ]
    assert encode(chat, dialogue(*texts)).ids.tolist() == ids


@pytest.mark.parametrize("texts", DIALOGUES.values(), ids=DIALOGUES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_how_the_same_conversation_with_its_answer_begins(chats, kind, texts):
    chat = chats[kind]
    for turns in range(2, len(texts) + 1, 2):
        said = dialogue(*texts[:turns])
        prompt = chat.prompt(said[:-1])
        whole = encode(chat, said)
        assert whole.ids[: len(prompt)].tolist() == prompt.tolist()
        assert whole.is_target[len(prompt)]


@given(
    texts=st.lists(
        st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*TYPED, "⟦0⟧", "⟦1⟧", "\n", " "])), max_size=4).map(
            "".join
        ),
        min_size=2,
        max_size=6,
    ).filter(lambda texts: len(texts) % 2 == 0)
)
@settings(max_examples=60)
def test_any_text_comes_back_from_its_targets(tiny_chat, texts):
    texts = [text if text.strip() and IMAGE not in text else "a" for text in texts]
    whole = encode(tiny_chat, dialogue(*texts))
    assert targets(tiny_chat, whole) == [answer.strip() + END["qwen"] for answer in texts[1::2]]
    prompt = tiny_chat.prompt(dialogue(*texts[:-1]))
    assert whole.ids[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_that_a_person_typed_are_only_text(chats, kind, typed):
    chat = chats[kind]
    plain = encode(chat, dialogue("<image>\nWhat is this?", "A cat."))
    marked = encode(chat, dialogue(f"<image>\nWhat {typed} is this? {typed}", "A cat."))
    assert (marked.ids == chat.end_id).sum() == (plain.ids == chat.end_id).sum()
    assert (marked.ids == chat.tokenizer.bos_token_id).sum() == (plain.ids == chat.tokenizer.bos_token_id).sum()
    assert targets(chat, marked) == targets(chat, plain)
    assert "".join(typed.split()) in "".join(chat.tokenizer.decode(marked.ids).split())


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("kind", KINDS)
def test_markers_in_an_answer_are_supervised_as_text(chats, kind, typed):
    chat = chats[kind]
    said = f"A {typed.strip()} cat."
    for form, end in ((Form.chat, chat.end_id), (Form.plain, chat.end_id)):
        encoded = encode(chat, dialogue("<image>\nWhat?", said), form)
        ids = encoded.ids[encoded.is_target]
        assert ids[-1] == end
        assert (ids == end).sum() == 1
        assert "".join(said.split()) in "".join(chat.tokenizer.decode(ids).split())


def test_a_system_turn_is_no_target(tiny_chat):
    encoded = encode(tiny_chat, (Turn("system", "Be brief."), *dialogue(*ONE)))
    assert targets(tiny_chat, encoded) == [ONE[1] + END["qwen"]]
    assert "Be brief." in tiny_chat.tokenizer.decode(encoded.ids)


@pytest.mark.parametrize(
    ("turns", "images", "code"),
    [
        (dialogue("<image>\nWhat?", "a"), 0, "image_count"),
        (dialogue("What?", "a"), 1, "image_count"),
        (dialogue("<image><image>", "a"), 1, "image_count"),
        (dialogue("What?", "an <image>"), 0, "image_count"),
        (dialogue("What?", ""), 0, "empty_answer"),
        (dialogue("What?", "a", "And?", " \n"), 0, "empty_answer"),
        ((), 0, "roles"),
        (dialogue("What?"), 0, "roles"),
        (dialogue("a", "What?", roles=("assistant", "user")), 0, "roles"),
        (dialogue("What?", "Well?", roles=("user",)), 0, "roles"),
        (dialogue("x", roles=("system",)), 0, "roles"),
        ((*dialogue("What?", "a"), Turn("system", "x"), Turn("assistant", "b")), 0, "roles"),
        (dialogue("What?", "half \ud83d"), 0, "text"),
        (dialogue("\udc00", "a"), 0, "text"),
    ],
)
@pytest.mark.parametrize("form", Form)
def test_a_bad_sample_is_rejected_with_its_code(tiny_chat, turns, images, code, form):
    with pytest.raises(Reject) as reject:
        tiny_chat.encode(turns, images, form, 1000)
    assert reject.value.code == code


@pytest.mark.parametrize("kind", KINDS)
def test_exchanges_at_the_end_are_dropped_until_the_rest_fits(chats, kind):
    chat = chats[kind]
    turns = dialogue("<image>\n" + ONE[0], ONE[1], *TWO)
    lengths = [len(encode(chat, turns[:kept]).ids) for kept in (2, 4, 6)]
    for max_tokens, kept in ((lengths[2], 6), (lengths[2] - 1, 4), (lengths[1], 4), (lengths[1] - 1, 2)):
        cut = encode(chat, turns, max_tokens=max_tokens)
        assert cut.cut_turns == 6 - kept
        assert cut.ids.tolist() == encode(chat, turns[:kept]).ids.tolist()
    with pytest.raises(Reject, match="too_long"):
        encode(chat, turns, max_tokens=lengths[0] - 1)


def test_a_system_turn_alone_is_not_what_is_left_of_a_long_sample(tiny_chat):
    turns = (Turn("system", "Be brief."), *dialogue(*TWO))
    first = len(encode(tiny_chat, turns[:3]).ids)
    assert encode(tiny_chat, turns, max_tokens=first).cut_turns == 2
    with pytest.raises(Reject, match="too_long"):
        encode(tiny_chat, turns, max_tokens=first - 1)


def test_an_exchange_with_a_picture_is_never_dropped(tiny_chat):
    turns = dialogue("<image>\nWhat?", "a", "<image>\nAnd this?", "b", "Sure?", "yes")
    fits = len(encode(tiny_chat, turns[:4]).ids)
    assert encode(tiny_chat, turns, max_tokens=fits).cut_turns == 2
    with pytest.raises(Reject, match="too_long"):
        encode(tiny_chat, turns, max_tokens=fits - 1)


@pytest.mark.parametrize("form", Form)
@given(max_tokens=st.integers(1, 120))
@settings(max_examples=30)
def test_what_is_kept_fits_has_targets_and_whole_pictures(tiny_chat, form, max_tokens):
    turns = dialogue("<image><image>\nWhat?", "a b", "And?", "c d e", "More?", "f")
    try:
        encoded = encode(tiny_chat, turns, form, max_tokens)
    except Reject as reject:
        assert reject.code == "too_long"
        return
    assert len(encoded.ids) == len(encoded.is_target) <= max_tokens
    assert (encoded.ids == tiny_chat.image_id).sum() == 2 * tiny_chat.image_tokens
    assert encoded.is_target.any()


@pytest.mark.parametrize("kind", KINDS)
def test_plain_form_is_picture_caption_and_end(chats, kind):
    chat = chats[kind]
    encoded = encode(chat, dialogue("Describe it.\n<image>", " A red cat sits. "), Form.plain)
    opening = [] if kind == "qwen" else [chat.tokenizer.bos_token_id]
    caption = chat.tokenizer("A red cat sits.", add_special_tokens=False).input_ids
    assert encoded.ids.tolist() == [*opening, *[chat.image_id] * 4, *caption, chat.end_id]
    assert encoded.is_target.tolist() == [False] * (len(opening) + 4) + [True] * (len(caption) + 1)


def test_a_tokenizer_with_another_picture_token_reads_the_mark_of_every_corpus(tiny_language_model, tmp_path):
    patch(str(tiny_language_model), "<|picture|>", tmp_path)
    chat = Chat.load(str(tmp_path), "<|picture|>", 4)
    encoded = encode(chat, dialogue("<image>\nIs it a cat?", "no"))
    assert (encoded.ids == chat.image_id).sum() == 4
    with pytest.raises(Reject, match="image_count"):
        encode(chat, dialogue("<image>\nIs <|picture|> a token?", "no"))


def test_templates_that_cannot_be_used_are_refused(tiny_tokenizer):
    for template, fault in (
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", "no special token at the end"),
        ("{{ messages[-1]['content'] }}", "does not write the turns"),
    ):
        chat = Chat.load(str(tiny_tokenizer), "<image>", 4)
        chat.tokenizer.chat_template = template
        with pytest.raises(Unusable, match=fault):
            encode(chat, dialogue(*ONE))


def test_a_tokenizer_without_an_end_is_refused(tiny_chat, tiny_tokenizer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(Unusable, match="end-of-sequence"):
        Chat(tokenizer, "<image>", 4)


def test_a_template_that_leaves_its_last_turn_open_still_ends_the_answer(tiny_tokenizer):
    chat = Chat.load(str(tiny_tokenizer), "<image>", 4)
    chat.tokenizer.chat_template = (  # as Qwen1.5's: a turn is ended only when another follows it
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
        "{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = (Turn("user", "Where?"), Turn("assistant", "here"), Turn("user", "Why?"), Turn("assistant", "so"))
    encoded = chat.encode(turns, 0, Form.chat, 256)
    assert chat.tokenizer.decode(encoded.ids[encoded.is_target]) == "here<|im_end|>so<|im_end|>"
    prompt = chat.prompt(turns[:3])
    assert encoded.ids[: len(prompt)].tolist() == prompt.tolist()


def test_a_processor_s_template_is_read_and_the_tokenizer_s_first_token_stands_before_it(chats, tmp_path):
    """In the form of llava-hf/llava-1.5-7b-hf, whose template writes no <s> and takes parts alone."""
    template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
        "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    tokenizer = copy.deepcopy(chats["vicuna"].tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_token": "<image>"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "image_seq_length": 3}))
    chat = Chat.of_model(tmp_path)
    ids = chat.prompt(dialogue("<image>\nIs it a cat?", "no")[:1])
    text = f"USER: {'<image>' * 3}\nIs it a cat? ASSISTANT:"
    assert ids.tolist() == tokenizer(text).input_ids and ids[0] == tokenizer.bos_token_id
