import pytest
from transformers import AutoTokenizer

from vlm.endpoint.asker import cost_of
from vlm.instruct.estimate import Tokens, estimate
from vlm.instruct.prompts import request_of
from vlm.instruct.run import tasks_of


def test_prompts_are_counted_as_the_template_writes_them(settings, tiny_tokenizer):
    tokens, tokenizer = Tokens.load(tiny_tokenizer), AutoTokenizer.from_pretrained(tiny_tokenizer)
    for task in tasks_of(settings(), 0)[0]:
        messages = request_of(task, 1, "m", 10, 0.7).messages
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert abs(tokens.prompt(task) - len(tokenizer.encode(text, add_special_tokens=False))) <= 1


def test_costs_of_nothing_are_explained(settings, tiny_tokenizer):
    tasks, _ = tasks_of(settings(), 0)
    said = [estimate(tasks, Tokens.load(tiny_tokenizer), cfg) for cfg in (settings(), settings(input_price=1.0))]
    assert ["no price is set" in table for table in said] == [True, False]


def test_the_table_adds_up(settings, tiny_tokenizer):
    cfg = settings(input_price=2.0, output_price=10.0)
    tokens = Tokens.load(tiny_tokenizer)
    tasks, _ = tasks_of(cfg, 0)
    rows = {
        row[0]: [float(cell.replace(",", "")) for cell in row[1:]]
        for row in map(str.split, estimate(tasks, tokens, cfg).splitlines()[1:])
    }
    requests, asked, said, likely, most = rows["all"]
    assert requests == 36
    assert asked == sum(map(tokens.prompt, tasks))
    for column in range(3):
        assert rows["all"][column] == sum(rows[name][column] for name in cfg.kinds)
    assert likely == pytest.approx((2 * asked + 10 * said) / 1e6, abs=1e-4)
    assert most == pytest.approx(2 * (2 * asked + 10 * 36 * cfg.max_tokens) / 1e6, abs=1e-4)
    assert cost_of(1_000_000, 500_000, cfg.runtime) == 7.0
