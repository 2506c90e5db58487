import pytest
from transformers import LlavaForConditionalGeneration

from vlm.eval import batch as batches
from vlm.eval.batch import Ask
from vlm.eval.write import AHEAD, can_write

LONG = 2 * AHEAD + 4  # tokens of an answer: more than memory is taken for at once


def generate(answerer, split, asks):
    return answerer.generate(answerer.collate(split, asks), LONG)


def test_questions_in_one_row_are_answered_as_in_rows_of_their_own(answerer, held_out, questions, monkeypatch):
    """Seen to fail with a mask that lets a question see the tails before it, or with positions counted on."""
    asks = [Ask(one, one.prompt, questions[0].own) for one in questions if len(one.pictures) == 1]
    alone = [generate(answerer, held_out, [ask])[0] for ask in asks]
    assert len(set(map(tuple, alone))) > 9 and max(map(len, alone)) == LONG
    for size in (1, 4, len(asks)):

        def in_rows(head_of, heads, tails, size=size):
            return [list(range(at, min(at + size, len(tails)))) for at in range(0, len(tails), size)]

        monkeypatch.setattr(batches, "in_rows", in_rows)
        assert generate(answerer, held_out, asks) == alone


def test_what_has_ended_is_not_computed_on(answerer, held_out, questions, monkeypatch):
    asks = [Ask(one, one.prompt, one.own) for one in questions]
    written = generate(answerer, held_out, asks)
    first = [ids[0] for ids in written]
    monkeypatch.setattr(answerer, "stop_ids", frozenset(first[1:]))
    lengths = []
    handle = answerer.model.lm_head.register_forward_hook(lambda _, given, __: lengths.append(len(given[0])))
    generate(answerer, held_out, asks)
    handle.remove()
    assert lengths[0] == len(asks) and sum(lengths[1:]) <= (LONG - 1) * sum(one not in first[1:] for one in first)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.generation_config, "repetition_penalty", 1.1),
        lambda model: setattr(model.config.text_config, "sliding_window", 8),
        lambda model: setattr(model.config.text_config, "layer_types", ["full_attention", "linear_attention"]),
        lambda model: setattr(model.config, "vision_feature_layer", [-1, -2]),
    ],
)
def test_a_model_with_rules_of_its_own_is_left_to_transformers(tiny_model, change):
    model = LlavaForConditionalGeneration.from_pretrained(tiny_model)
    assert can_write(model)
    change(model)
    assert not can_write(model)
