import numpy as np

from vlm.eval.batch import NOBODY, Ask, in_batches, in_rows
from vlm.eval.tasks import swapped_pictures


def own(questions):
    return [Ask(question, question.prompt, question.own) for question in questions]


def prompts(batch):
    """Put heads and tails of a batch together again."""
    found = {}
    for row, owners in enumerate(batch.tail_of):
        assert set(owners.tolist()) - {NOBODY} == set(batch.rows[row])
        for number in batch.rows[row]:
            of = batch.head_of[number]
            head = batch.head_ids[of][batch.head_is_token[of].bool()]
            found[number] = [*head.tolist(), *batch.tail_ids[row][owners == number].tolist()]
            places = batch.tail_positions[row][owners == number].tolist()
            assert places == list(range(len(head), len(found[number])))
    return [found[number] for number in range(len(batch.asks))]


def test_a_batch_holds_each_picture_once_and_every_prompt_whole(answerer, held_out, questions):
    asks = [Ask(one, one.prompt, questions[0].own) for one in questions if len(one.pictures) == 1]
    batch = answerer.collate(held_out, asks)
    assert len(asks) > 9 and len(batch.pixels) == 1 and len(batch.head_ids) == 1 and not any(batch.head_of)
    assert prompts(batch) == [ask.prompt.tolist() for ask in asks]


def test_rows_with_other_pictures_or_other_words_before_them_have_heads_of_their_own(answerer, held_out, questions):
    one, two, bare = (next(of for of in questions if len(of.pictures) == number) for number in (1, 2, 0))
    reworded = np.insert(one.prompt, 1, one.prompt[1])
    asks = [*own([one, two, bare, one]), Ask(one, reworded, one.own)]
    batch = answerer.collate(held_out, asks)
    assert batch.head_of == (0, 1, 2, 0, 3) and len(batch.pixels) == 1 + 2 + 1
    assert prompts(batch) == [ask.prompt.tolist() for ask in asks]


def test_questions_without_pictures_share_what_they_all_begin_with(answerer, held_out, questions):
    bare = [one for one in questions if not one.pictures]
    batch = answerer.collate(held_out, own(bare))
    assert batch.pixels is None and len(batch.head_ids) == 1 and batch.head_ids.shape[1] > 9
    alone = answerer.collate(held_out, own(bare[:1]))
    assert alone.tail_ids.shape[1] == 1


def test_questions_about_the_same_pictures_come_side_by_side(questions):
    for asks in (
        own(questions),
        [Ask(one, one.prompt, shown) for one, shown in zip(questions, swapped_pictures(questions, 0), strict=True)],
    ):
        batches = in_batches(asks, 7)
        ordered = [ask for batch in batches for ask in batch]
        assert sorted(ask.question.id for ask in ordered) == sorted(one.id for one in questions)
        assert max(map(len, batches)) <= 7
        names = {place: name for one in questions for place, name in zip(one.own, one.pictures, strict=True)}
        shown = [tuple(names[place] for place in ask.places) for ask in ordered]
        changes = sum(before != after for before, after in zip(shown, shown[1:], strict=False))
        assert changes + 1 == len(set(shown)) < len(questions)
        assert max(len(ask.prompt) for ask in asks) == len(ordered[0].prompt)


def test_a_batch_ends_where_the_next_group_would_be_cut(make_question):
    asked = [make_question(number, (f"picture {number // 3}",)) for number in range(9)]
    assert [[ask.question.id for ask in batch] for batch in in_batches(own(asked), 7)] == [
        ["q0", "q1", "q2", "q3", "q4", "q5"],
        ["q6", "q7", "q8"],
    ]
    assert [len(batch) for batch in in_batches(own(asked), 2)] == [2, 1, 2, 1, 2, 1]


def test_questions_about_a_picture_share_a_row_where_that_takes_less():
    pope = in_rows([0] * 18 + [1] * 18, [590, 590], [27] * 36)
    assert max(map(len, pope)) > 8 and sorted(sum(pope, [])) == list(range(36))
    assert all(len({number < 18 for number in row}) == 1 for row in pope)
    assert in_rows([0] * 18 + list(range(1, 47)), [590] * 47, [27] * 64) == [[number] for number in range(64)]
    assert in_rows([0] * 16, [10], [1000] * 16) == [[number] for number in range(16)]
