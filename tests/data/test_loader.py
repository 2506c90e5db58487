import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm.data.index import Split
from vlm.data.loader import IGNORED, Batch, Steps, check_split, load_steps, whole_workers
from vlm.data.pixels import Preprocessing, decode, prepare
from vlm.data.plan import make_plan
from vlm.errors import Hindered, Unusable


@pytest.fixture
def steps_of(tiny_shards, tiny_chat, tiny_model):
    """Return a function that makes the steps of one rank over the finetune split."""

    def make(rank: int = 0, ranks: int = 1, packing: bool = True, rows_at_once: int = 2, **changes) -> Steps:
        split = Split(tiny_shards / "finetune")
        usual = {"epochs": 1.0, "steps": None, "samples_per_step": 7, "pack_tokens": 200, "pack_images": 6}
        plan = make_plan(split.rows, 0, packing=packing, **usual | changes)
        how = Preprocessing.load(tiny_model)
        return Steps(split, plan, tiny_chat, how, rank=rank, ranks=ranks, rows_at_once=rows_at_once)

    return make


def samples_in(steps: Steps, batches: list[Batch]) -> dict[int, tuple]:
    """Return ids, labels, positions and pixels of each sample, by its number."""
    found = {}
    for batch in batches:
        numbers, pictures = iter(batch.samples), iter(batch.pixel_values)
        for row in range(len(batch.input_ids)):
            at = 0
            while at < batch.input_ids.shape[1] and batch.input_ids[row, at] != steps.chat.tokenizer.pad_token_id:
                number = next(numbers)
                tokens, images = (int(steps.split.rows[number][name]) for name in ("tokens", "images"))
                here = slice(at, at + tokens)
                parts = (batch.input_ids, batch.labels, batch.position_ids)
                found[number] = (
                    *(part[row, here].tolist() for part in parts),
                    [next(pictures).tolist() for _ in range(images)],
                )
                at += tokens
        assert next(numbers, None) is None
        assert next(pictures, None) is None
    return found


def equal(one: list[Batch], other: list[Batch]) -> bool:
    names = ("input_ids", "labels", "position_ids", "pixel_values")
    return (
        len(one) == len(other)
        and all(
            torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(one, other, strict=True) for name in names
        )
        and [batch.samples for batch in one] == [batch.samples for batch in other]
    )


def test_a_sample_arrives_as_it_was_sharded(steps_of):
    steps = steps_of()
    for step in range(len(steps)):
        found = samples_in(steps, steps[step])
        assert set(found) == set(steps.plan.samples(step).tolist())
        for number, (ids, labels, positions, pixels) in found.items():
            stored = steps.split.read(number)
            encoded = steps.chat.encode(stored.sample.turns, len(stored.pictures), steps.split.form, 256)
            assert ids == encoded.ids.tolist()
            assert labels == np.where(encoded.is_target, encoded.ids, IGNORED).tolist()
            assert positions == list(range(len(ids)))
            assert pixels == [prepare(decode(data), steps.how).tolist() for data in stored.pictures]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_see_what_one_rank_sees_alone(steps_of, ranks, packing):
    alone = steps_of()
    shares = [steps_of(rank, ranks, packing) for rank in range(ranks)]
    for step in range(len(alone)):
        together = {}
        for share in shares:
            part = samples_in(share, share[step])
            assert not part.keys() & together.keys()
            together |= part
        assert together == samples_in(alone, alone[step])
        assert len({len(share[step]) for share in shares}) == 1


def test_the_plan_knows_the_targets_of_a_step(steps_of):
    steps = steps_of()
    for step in range(len(steps)):
        targets = sum(int((batch.labels != IGNORED).sum()) for batch in steps[step])
        assert targets == steps.plan.target_count(step)
        assert sum(batch.tokens for batch in steps[step]) == steps.plan.tokens[steps.plan.samples(step)].sum()


def test_every_target_of_a_batch_has_the_source_of_its_sample(steps_of):
    steps = steps_of()
    number_of = np.arange(len(steps.split)) * 7 % 3
    steps.plan = replace(steps.plan, sources=number_of)
    for step in range(len(steps)):
        for batch in steps[step]:
            targets = [int(steps.split.rows[number]["targets"]) for number in batch.samples]
            expected = [number_of[n] for n, count in zip(batch.samples, targets, strict=True) for _ in range(count)]
            assert batch.sources.tolist() == expected
            assert len(expected) == (batch.labels != IGNORED).sum()


def test_padding_is_no_target_and_a_sample_of_its_own(steps_of):
    steps = steps_of(packing=False, rows_at_once=8)
    (batch,) = steps[0]
    for row, number in enumerate(batch.samples):
        tokens = int(steps.split.rows[number]["tokens"])
        assert (batch.input_ids[row, tokens:] == steps.chat.tokenizer.pad_token_id).all()
        assert (batch.labels[row, tokens:] == IGNORED).all()
        assert batch.position_ids[row, tokens:].tolist() == list(range(batch.input_ids.shape[1] - tokens))
    assert not (batch.labels[:, 0] != IGNORED).any()


def test_an_empty_pack_is_a_row_of_padding(steps_of):
    steps = steps_of(rank=3, ranks=4, samples_per_step=1)
    (batch,) = steps[0]
    assert batch.samples == ()
    assert (batch.labels == IGNORED).all()
    assert (batch.tokens, len(batch.pixel_values), batch.input_ids.shape) == (0, 0, (1, 1))


def test_a_pack_of_text_has_no_pictures(steps_of):
    steps = steps_of(packing=False, rows_at_once=1)
    text = [
        batch for step in range(len(steps)) for batch in steps[step] if not steps.split.rows[batch.samples[0]]["images"]
    ]
    assert text
    assert all(batch.pixel_values.shape == (0, 3, 16, 16) for batch in text)
    assert all(batch.pixel_values.dtype == torch.uint8 for batch in text)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_a_run_begins_at_any_step_with_the_same_batches(steps_of, first):
    steps = steps_of()
    later = list(load_steps(steps, first, workers=0))
    assert len(later) == len(steps) - first
    assert all(equal(batches, steps[first + i]) for i, batches in enumerate(later))


def test_worker_processes_change_nothing(steps_of):
    steps = steps_of()
    alone, helped = list(load_steps(steps, 1, workers=0)), list(load_steps(steps, 1, workers=2))
    assert len(alone) == len(helped) == len(steps) - 1
    assert all(equal(one, other) for one, other in zip(alone, helped, strict=True))


def test_a_fault_in_a_worker_process_names_the_damage(steps_of, tmp_path, tiny_shards):
    steps = steps_of()
    folder = tmp_path / "finetune"
    shutil.copytree(tiny_shards / "finetune", folder)
    for path in folder.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    steps.split = Split(folder)
    with pytest.raises(Unusable, match="damaged") as fault:
        list(load_steps(steps, 0, workers=1))
    assert fault.traceback
    assert not multiprocessing.active_children()  # or this process would wait for it when it ends


def test_a_worker_process_that_is_killed_is_one_line_and_may_be_run_again(steps_of, tmp_path):
    steps, said = steps_of(epochs=50.0), tmp_path / "said"

    def read() -> None:
        try:
            with whole_workers():
                for _ in load_steps(steps, 0, workers=1):
                    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        except Hindered as problem:
            said.write_text(str(problem))

    # in a process of its own: torch tells it from a signal handler, which could as well strike pytest
    reader = multiprocessing.get_context("fork").Process(target=read)
    reader.start()
    reader.join(120)
    assert "a process that reads samples was killed" in said.read_text()


def test_shards_of_another_tokenizer_are_refused(steps_of):
    steps = steps_of()
    rows = np.array(steps.split.rows)
    rows["tokens"] += 1
    steps.split.rows = rows
    with pytest.raises(Unusable, match="another tokenizer"):
        list(load_steps(steps, 0, workers=0))


def test_shards_for_another_tower_are_refused(tiny_shards):
    assert len(check_split(tiny_shards / "finetune", 4)) == 24
    with pytest.raises(Unusable, match="4 tokens a picture, the model has 9"):
        check_split(tiny_shards / "finetune", 9)
    with pytest.raises(Unusable, match="holds no shards"):
        check_split(Path(tiny_shards / "none"), 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pictures_wait_where_a_gpu_can_fetch_them(steps_of):
    (batch, *_) = next(load_steps(steps_of(), 0, workers=1))
    assert batch.pixel_values.is_pinned()
