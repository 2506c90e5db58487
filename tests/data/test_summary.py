import hashlib

import numpy as np
import pytest

from vlm.config import Form
from vlm.data.checks import Checks
from vlm.data.summary import compact, entries_of, manifest_of, rejects_of, table

SHA = hashlib.sha256(b"").hexdigest()


def entry(shard: int, source: int, tokens: int) -> list[int]:
    return [shard, 0, 1024, 7, source, 1, 20, 10, tokens, 5]


def reject(source: str, reason: str) -> dict[str, str]:
    return {"source": source, "id": "1", "reason": reason, "detail": "why"}


@pytest.fixture
def sidecars():
    first = {
        "read": {"a": 4},
        "entries": [entry(0, 0, 30), entry(0, 0, 40)],
        "digests": ["01" * 16, "02" * 16],
        "rejects": [reject("a", "corrupt"), reject("a", "excluded_same")],
        "cut_turns": 2,
        "sha256": SHA,
    }
    second = {
        "read": {"a": 1, "b": 2},
        "entries": [entry(1, 0, 10), entry(1, 1, 20)],
        "digests": ["01" * 16, "03" * 16],
        "rejects": [reject("b", "corrupt")],
        "cut_turns": 0,
        "sha256": SHA,
    }
    return [compact(first), compact(second)]


@pytest.fixture
def manifest(sidecars, tiny_chat):
    return manifest_of(sidecars, ["a", "b", "c"], Checks(tiny_chat, Form.chat, 256, 10_000))


def test_the_manifest_counts_every_row_once(manifest):
    assert (manifest["read"], manifest["samples"], manifest["rejected"], manifest["left_out"]) == (7, 4, 2, 1)
    assert manifest["reasons"] == {"corrupt": 2}
    assert manifest["reasons_left_out"] == {"excluded_same": 1}
    assert (manifest["tokens"], manifest["targets"], manifest["longest"]) == (100, 20, 40)
    assert (manifest["images"], manifest["bytes"], manifest["cut_turns"]) == (4, 4096, 2)
    assert manifest["duplicates"] == 1


def test_sources_add_up_to_the_whole(manifest):
    by_source = manifest["by_source"]
    assert set(by_source) == {"a", "b"}  # of c nothing was read here
    for key in ("read", "samples", "rejected", "left_out", "images", "tokens", "targets", "bytes"):
        assert sum(figures[key] for figures in by_source.values()) == manifest[key]
    assert by_source["b"] == by_source["b"] | {"read": 2, "samples": 1, "reasons": {"corrupt": 1}, "tokens": 20}


def test_rejects_and_what_is_left_out_are_told_apart(sidecars):
    assert [one["reason"] for one in rejects_of(sidecars, left_out=False)] == ["corrupt", "corrupt"]
    assert [one["reason"] for one in rejects_of(sidecars, left_out=True)] == ["excluded_same"]


def test_entries_come_in_the_order_of_the_shards(sidecars):
    rows = entries_of(sidecars)
    assert rows["shard"].tolist() == [0, 0, 1, 1]
    assert np.array_equal(rows["tokens"], [30, 40, 10, 20])
    assert len(entries_of([])) == 0


def test_the_table_has_a_line_for_each_split_and_each_source(manifest):
    head, whole, first, second = table({"finetune": manifest}).splitlines()
    assert head.split()[:4] == ["read", "samples", "rejected", "left_out"]
    assert whole.split()[:5] == ["finetune", "7", "4", "2", "1"]
    assert whole.endswith("corrupt 2, excluded_same 1")
    assert first.split()[:3] == ["a", "5", "3"]
    assert second.split()[:3] == ["b", "2", "1"]
