"""The tokenizer: Qwen's chat, and no picture token yet."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer


def test_tokenizer_speaks_chat_and_knows_no_image(language_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Où?"}], tokenize=False, add_generation_prompt=True
    )
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert chat == f"{system}<|im_start|>user\nOù?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(chat)["input_ids"]) == chat
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert "<image>" not in tokenizer.get_vocab()
    assert len(tokenizer) + 1 <= AutoModelForCausalLM.from_pretrained(language_model).config.vocab_size
