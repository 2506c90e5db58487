import json
import shutil

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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
    assert figures == {"image_token": "<image>", "image_token_id": len(before), "tokens": len(before) + 1}
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


def test_equal_input_gives_equal_files(tiny_language_model, tiny_tokenizer, tmp_path):
    patch(str(tiny_language_model), "<image>", tmp_path)
    for file in tiny_tokenizer.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_tokenizer_without_padding_pads_with_its_end(copied):
    source, out = copied
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(source)
    patch(str(source), "<image>", out)
    assert AutoTokenizer.from_pretrained(out).pad_token == "<|im_end|>"


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


def test_a_tokenizer_without_a_template_is_patched_for_the_plain_form(copied):
    source, out = copied
    (source / "chat_template.jinja").unlink()
    assert patch(str(source), "<image>", out)["image_token"] == "<image>"


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    with pytest.raises(Unusable, match=r"language model: .*none is not there"):
        patch(str(tmp_path / "none"), "<image>", tmp_path / "out")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(Unusable, match="tokenizer of the language model") as fault:
        patch(str(tmp_path / "source"), "<image>", tmp_path / "out")
    assert "\n" not in str(fault.value)
