import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.data import plan
from vlm.data.index import ROW
from vlm.data.plan import _argsort, epoch_order, make_plan
from vlm.errors import Unusable

GOLDEN_ORDER = [16, 76, 40, 19, 86, 38, 41, 32, 54, 48]
GOLDEN_FINGERPRINT = "6fb535a3a6c8a9d206783fb443d896a30c6dbafd4c0cba2eb06d4ba2050666e3"


def rows_of(tokens: list[int], images: list[int] | None = None) -> np.ndarray:
    rows = np.zeros(len(tokens), ROW)
    rows["tokens"], rows["targets"] = tokens, [max(1, count // 2) for count in tokens]
    rows["images"] = images if images is not None else [1] * len(tokens)
    return rows


def plan_of(rows: np.ndarray, seed: int = 0, **changes):
    usual = {"epochs": 1.0, "steps": None, "samples_per_step": 8, "pack_tokens": 100, "pack_images": 4, "packing": True}
    return make_plan(rows, seed, **usual | changes)


ROWS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 4)), min_size=1, max_size=60).map(
    lambda sizes: rows_of(*map(list, zip(*sizes, strict=True)))
)


def test_the_order_is_that_of_every_version_before():
    assert epoch_order(0, 0, 100)[:10].tolist() == GOLDEN_ORDER
    assert plan_of(rows_of([10] * 100)).fingerprint == GOLDEN_FINGERPRINT


@pytest.mark.parametrize("chunk", [1, 7, 99, 100, 101])
def test_the_plan_does_not_depend_on_how_many_rows_are_worked_on_at_once(monkeypatch, chunk):
    monkeypatch.setattr(plan, "CHUNK", chunk)
    assert epoch_order(0, 0, 100)[:10].tolist() == GOLDEN_ORDER
    rows = rows_of([1 + i % 90 for i in range(100)], [i % 5 for i in range(100)])
    rows["source"] = np.arange(100) % 3
    made = plan_of(rows)
    for column, name in ((made.tokens, "tokens"), (made.images, "images"), (made.targets, "targets")):
        assert np.array_equal(column, rows[name])
    assert np.array_equal(made.sources, rows["source"])


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 1000), samples=st.integers(1, 300))
@settings(max_examples=60)
def test_every_epoch_is_a_permutation(seed, epoch, samples):
    assert np.array_equal(np.sort(epoch_order(seed, epoch, samples)), np.arange(samples))


@given(keys=st.lists(st.integers(0, 3).map(lambda high: high << 62) | st.integers(0, 2**64 - 1), max_size=300))
@settings(max_examples=60)
def test_the_quick_way_to_order_keys_is_argsort(keys):
    keys = np.array(keys, np.uint64)
    assert np.array_equal(_argsort(keys), np.argsort(keys, kind="stable"))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_every_place_is_as_likely_for_every_sample():
    places = np.array([np.argsort(epoch_order(seed, 0, 10)) for seed in range(4000)])
    counts = np.array([np.bincount(places[:, sample], minlength=10) for sample in range(10)])
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400)


@given(rows=ROWS, per_step=st.integers(1, 20), epochs=st.integers(1, 3), packing=st.booleans(), ranks=st.integers(1, 5))
@settings(max_examples=80)
def test_packs_hold_each_sample_of_the_step_once_within_their_limits(rows, per_step, epochs, packing, ranks):
    plan = plan_of(rows, epochs=epochs, samples_per_step=per_step, packing=packing)
    seen = []
    for step in range(plan.steps):
        packs = plan.packs(step, ranks)
        assert len(packs) % ranks == 0
        assert sorted(sample for pack in packs for sample in pack) == sorted(plan.samples(step).tolist())
        for pack in packs:
            assert rows["tokens"][pack].sum() <= 100
            assert rows["images"][pack].sum() <= 4
            assert packing or len(pack) <= 1
        seen += plan.samples(step).tolist()
    for epoch in range(epochs):
        assert sorted(seen[epoch * len(rows) : (epoch + 1) * len(rows)]) == list(range(len(rows)))


@given(rows=ROWS, ranks=st.integers(1, 5), rows_at_once=st.integers(1, 4), packing=st.booleans())
@settings(max_examples=60)
def test_ranks_share_a_step_in_as_many_micro_batches_each(rows, ranks, rows_at_once, packing):
    plan = plan_of(rows, packing=packing)
    for step in range(plan.steps):
        shares = [plan.share(step, rank, ranks, rows_at_once) for rank in range(ranks)]
        assert {tuple(len(packs) for packs in share) for share in shares} == {tuple(len(packs) for packs in shares[0])}
        assert all(1 <= len(packs) <= rows_at_once for share in shares for packs in share)
        together = [sample for share in shares for packs in share for pack in packs for sample in pack]
        assert sorted(together) == sorted(plan.samples(step).tolist())


def test_packs_are_few_and_about_equally_full():
    rows = rows_of(np.random.default_rng(0).integers(5, 50, 64).tolist(), [1] * 64)
    plan = plan_of(rows, samples_per_step=64, pack_images=64)
    loads = [rows["tokens"][pack].sum() for pack in plan.packs(0, 1)]
    assert len(loads) <= np.ceil(rows["tokens"].sum() / 100) + 1
    assert min(loads) > 0.8 * max(loads)


def test_the_last_step_may_hold_fewer_samples():
    plan = plan_of(rows_of([10] * 20))
    assert [len(plan.samples(step)) for step in range(plan.steps)] == [8, 8, 4]


def test_part_of_an_epoch_and_a_number_of_steps_are_taken_exactly():
    rows = rows_of([10] * 20)
    assert len(plan_of(rows, epochs=0.5).order) == 10
    assert len(plan_of(rows, epochs=2.5).order) == 50
    assert (plan_of(rows, steps=7).steps, len(plan_of(rows, steps=7).order)) == (7, 56)
    assert plan_of(rows, steps=7).order[:40].tolist() == plan_of(rows, epochs=2).order.tolist()


def test_the_targets_of_a_step_are_counted_in_advance():
    rows = rows_of(list(range(4, 24)))
    plan = plan_of(rows)
    for step in range(plan.steps):
        assert plan.target_count(step) == rows["targets"][plan.samples(step)].sum()


def test_the_targets_of_each_source_are_counted_in_advance():
    rows = rows_of(list(range(4, 24)))
    rows["source"] = np.arange(20) % 3
    plan = plan_of(rows)
    for step in range(plan.steps):
        here = rows[plan.samples(step)]
        expected = [here["targets"][here["source"] == source].sum() for source in range(3)]
        assert plan.target_counts(step, 3).tolist() == expected


@given(epoch=st.integers(0, 5), samples=st.integers(1, 200), at_once=st.integers(1, 12))
@settings(max_examples=60)
def test_samples_come_out_of_so_many_shards_at_a_time(epoch, samples, at_once):
    shards = np.arange(samples) // 20
    order = epoch_order(0, epoch, samples, shards, at_once)
    assert np.array_equal(np.sort(order), np.arange(samples))
    turns = [set(group) for group in np.split(shards[order], np.flatnonzero(np.diff(shards[order])) + 1)]
    assert len(turns) >= len(set(shards))
    seen, opened = set(), []
    for shard in shards[order].tolist():
        if shard not in seen:
            seen.add(shard)
            opened.append(shard)
    windows = {shard: i // at_once for i, shard in enumerate(opened)}
    visited = [windows[shard] for shard in shards[order].tolist()]
    assert visited == sorted(visited)  # a window is left for good before the next one begins


def test_a_window_of_shards_is_shuffled_and_other_epochs_take_them_in_another_order():
    shards = np.arange(400) // 20
    orders = [epoch_order(0, epoch, 400, shards, 4) for epoch in range(2)]
    first = [shards[order][:80] for order in orders]
    assert len(set(first[0])) == len(set(first[1])) == 4
    assert set(first[0]) != set(first[1])
    assert (np.diff(first[0]) != 0).sum() > 40
    rows = rows_of([10] * 400)
    rows["shard"] = shards
    assert plan_of(rows, shards_at_once=4).order.tolist() == orders[0].tolist()


def test_the_fingerprint_names_the_samples_of_every_step_and_nothing_else():
    rows = rows_of([10] * 20)
    one = plan_of(rows).fingerprint
    same = [plan_of(rows), plan_of(rows, packing=False), plan_of(rows, pack_tokens=50)]
    other = [plan_of(rows, seed=1), plan_of(rows, epochs=2), plan_of(rows, samples_per_step=4), plan_of(rows[:-1])]
    assert {plan.fingerprint for plan in same} == {one}
    assert one not in {plan.fingerprint for plan in other}
    assert dataclasses.replace(plan_of(rows), packing=False).fingerprint == one


@pytest.mark.parametrize(("tokens", "images"), [(101, 0), (5, 5)])
def test_a_sample_too_large_for_a_pack_is_refused(tokens, images):
    with pytest.raises(Unusable, match=f"{tokens} tokens, {max(images, 1)} pictures"):
        plan_of(rows_of([5, tokens], [1, images]))


def test_nothing_to_train_on_is_refused():
    with pytest.raises(Unusable, match="nothing to train on"):
        plan_of(rows_of([10] * 20), epochs=0.01)
