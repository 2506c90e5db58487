import json
import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlm.config import ChatTemplate
from vlm.errors import Unusable
from vlm.model.tokenizer import PROBE, patch

TEXTS = [PROBE, "", " two  spaces", "\n\n", "中文", "🙂" * 3, "<|im_start|>user\nx<|im_end|>\n", "naïve café\t1,000"]


@pytest.fixture
def copied(tiny_language_model, tmp_path):
    """Return a copy of the language model's folder whose tokenizer a test may change, and where to patch it to."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_language_model, folder)
    return folder, tmp_path / "out"


def test_the_picture_token_is_one_new_id_and_the_last(tiny_language_model, tmp_path):
    before = AutoTokenizer.from_pretrained(tiny_language_model)
    figures = patch(str(tiny_language_model), "<image>", tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert figures == {
        "image_token": "<image>",
        "image_token_id": len(before),
        "tokens": len(before) + 1,
        "pad_token": "<|endoftext|>",
        "chat_template": "the tokenizer's own",
    }
    assert len(after) == len(before) + 1
    assert "<image>" not in before.get_vocab()
    for text in ("<image>", "a<image>b", "<image><image>\n", "\n<image>"):
        assert after.encode(text).count(len(before)) == text.count("<image>")


def test_any_other_text_is_tokenized_as_before_and_comes_back(tiny_language_model, tiny_tokenizer):
    before, after = map(AutoTokenizer.from_pretrained, (tiny_language_model, tiny_tokenizer))
    for text in TEXTS:
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == text


def test_patching_twice_changes_nothing(tiny_tokenizer, tiny_language_model, tmp_path):
    shutil.copytree(tiny_tokenizer, tmp_path / "source")
    shutil.copy(tiny_language_model / "config.json", tmp_path / "source")
    figures = patch(str(tmp_path / "source"), "<image>", tmp_path / "again")
    assert figures["image_token_id"] == AutoTokenizer.from_pretrained(tiny_tokenizer).convert_tokens_to_ids("<image>")
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tiny_tokenizer / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("offline", [True, False])
def test_equal_input_gives_equal_files_with_and_without_a_network(
    tiny_language_model, tiny_tokenizer, tmp_path, monkeypatch, offline
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    patch(str(tiny_language_model), "<image>", tmp_path)
    for file in tiny_tokenizer.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def resaved(folder, **changes) -> None:
    """Change attributes of the tokenizer in a folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def test_a_tokenizer_without_padding_pads_with_a_spare_token(copied):
    source, out = copied
    resaved(source, pad_token=None)
    assert patch(str(source), "<image>", out)["pad_token"] == "<|endoftext|>"
    assert AutoTokenizer.from_pretrained(out).pad_token == "<|endoftext|>"


def test_a_tokenizer_without_padding_or_a_spare_token_pads_with_its_end(copied):
    source, out = copied
    resaved(source, pad_token=None, eos_token="<|endoftext|>")
    assert patch(str(source), "<image>", out)["pad_token"] == "<|endoftext|>"


def test_padding_that_is_the_end_token_stays_the_users(copied):
    source, out = copied
    resaved(source, pad_token="<|im_end|>")
    assert patch(str(source), "<image>", out)["pad_token"] == "<|im_end|>"


def test_an_id_that_is_taken_is_not_taken_again(copied):
    source, out = copied
    tokenizer = AutoTokenizer.from_pretrained(source)
    taken = len(tokenizer)
    tokenizer.add_tokens(["<|object_ref_start|>", "<|object_ref_end|>"], special_tokens=True)
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.save_pretrained(source)
    assert patch(str(source), "<image>", out)["image_token_id"] == taken + 3
    after = AutoTokenizer.from_pretrained(out)
    assert after.convert_tokens_to_ids("<|object_ref_start|>") == taken
    assert after.encode("<tool_call><image>") == [taken + 2, taken + 3]


def test_tokens_and_template_of_the_user_survive_but_for_the_picture(copied):
    source, out = copied
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<|mine|>"], special_tokens=True)
    tokenizer.add_tokens(["myword"])
    template = tokenizer.chat_template.replace("helpful", "mindful")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(source)
    patch(str(source), "<image>", out)
    before, after = map(AutoTokenizer.from_pretrained, (source, out))
    added = {str(token): (i, token.special) for i, token in after.added_tokens_decoder.items()}
    assert added.pop("<image>") == (len(before), True)
    assert added == {str(token): (i, token.special) for i, token in before.added_tokens_decoder.items()}
    assert after.special_tokens_map == before.special_tokens_map
    assert after.chat_template == template
    assert {**after.get_vocab()} == {**before.get_vocab(), "<image>": len(before)}


def test_a_picture_token_that_splits_other_text_differently_is_refused(copied):
    source, out = copied
    with pytest.raises(Unusable, match="splits other text differently"):
        patch(str(source), "def f", out)


def test_the_chat_template_stays(tiny_language_model, tiny_tokenizer):
    before, after = map(AutoTokenizer.from_pretrained, (tiny_language_model, tiny_tokenizer))
    assert after.chat_template == before.chat_template
    assert (after.eos_token, after.pad_token) == (before.eos_token, before.pad_token)


def test_a_template_whose_prompt_its_answer_does_not_continue_is_refused(copied):
    source, out = copied
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}answer:{% endif %}"
    )
    with pytest.raises(Unusable, match="chat template's prompt"):
        patch(str(source), "<image>", out)


@pytest.fixture
def without_template(copied):
    source, out = copied
    (source / "chat_template.jinja").unlink()
    return source, out


def test_a_tokenizer_without_a_template_asks_for_one_and_lists_them(without_template):
    source, out = without_template
    with pytest.raises(
        Unusable, match="has no chat template: choose model.chat_template, one of chatml, vicuna, plain"
    ):
        patch(str(source), "<image>", out)
    assert not out.exists()


def test_a_template_for_lists_of_parts_is_as_none(copied):
    source, out = copied
    parts = (
        "{% for m in messages %}{% for p in m['content'] | selectattr('type') %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    (source / "chat_template.jinja").write_text(parts)
    with pytest.raises(Unusable, match="a chat template that writes no text: choose"):
        patch(str(source), "<image>", out)
    assert patch(str(source), "<image>", out, ChatTemplate.vicuna)["chat_template"] == "vicuna"


def test_a_template_is_not_given_to_a_tokenizer_that_has_one(copied):
    source, out = copied
    with pytest.raises(Unusable, match="has a chat template of its own"):
        patch(str(source), "<image>", out, ChatTemplate.vicuna)


TALK = [
    {"role": "user", "content": "<image>\nWhat?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Why?"},
]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
WRITTEN = {
    ChatTemplate.chatml: "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    ChatTemplate.vicuna: SYSTEM + "USER: <image>\nWhat? ASSISTANT: A cat.<|im_end|>USER: Why? ASSISTANT:",
    ChatTemplate.plain: "<image>\nWhat?\nA cat.<|im_end|>Why?\n",
}


@pytest.mark.parametrize("template", ChatTemplate)
def test_each_template_writes_its_form(without_template, template):
    source, out = without_template
    assert patch(str(source), "<image>", out, template)["chat_template"] == template.value
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == WRITTEN[template]
    asked = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *TALK], tokenize=False)
    assert "Be brief." in asked
    assert SYSTEM not in asked


def test_chatml_is_refused_where_its_tokens_lack(copied, tmp_path):
    source, out = copied
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator([PROBE], trainers.BpeTrainer(vocab_size=99, special_tokens=["<unk>", "</s>"]))
    (source / "chat_template.jinja").unlink()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", unk_token="<unk>").save_pretrained(source)
    with pytest.raises(Unusable, match=r"lacks chatml's .*: choose model.chat_template=vicuna"):
        patch(str(source), "<image>", out, ChatTemplate.chatml)


@pytest.fixture(scope="module")
def sentencepiece_llama(tmp_path_factory):
    """A Llama folder whose tokenizer is a sentencepiece model alone, as Vicuna's."""
    trainer = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text").write_text("\n".join([SYSTEM, "USER: What is this? ASSISTANT: A cat. def f(x): return x"] * 40))
    settings = {"vocab_size": 340, "model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": True}
    trainer.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), minloglevel=2, **settings
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kind = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | names))
    return folder


def test_a_slow_tokenizer_is_patched_as_a_fast_one(sentencepiece_llama, tmp_path):
    figures = patch(str(sentencepiece_llama), "<image>", tmp_path, ChatTemplate.vicuna)
    before, after = map(AutoTokenizer.from_pretrained, (sentencepiece_llama, tmp_path))
    assert (figures["image_token_id"], figures["pad_token"]) == (len(before), "<unk>") == (340, "<unk>")
    for text in TEXTS:
        assert after.encode(text) == before.encode(text)
    ids = after.encode("a <image> b 中文 🙂", add_special_tokens=False)
    assert ids.count(340) == 1
    assert after.decode(ids) == "a <image> b 中文 🙂"
    asked = after.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert asked == f"<s>{SYSTEM}USER: <image>\nWhat? ASSISTANT:"


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    with pytest.raises(Unusable, match=r"language model: .*none is not there"):
        patch(str(tmp_path / "none"), "<image>", tmp_path / "out")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(Unusable, match="tokenizer of the language model") as fault:
        patch(str(tmp_path / "source"), "<image>", tmp_path / "out")
    assert "\n" not in str(fault.value)
