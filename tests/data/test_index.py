import io
import json
import shutil
import tarfile
import zlib

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.config import Form
from vlm.data.index import INDEX, MANIFEST, ROW, Split, record_of, shard_name, tar_size
from vlm.data.samples import Sample, Turn
from vlm.errors import Unusable

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SAMPLES = st.builds(
    Sample,
    WORDS,
    st.just("mine"),
    st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), WORDS), min_size=1, max_size=4).map(tuple),
    extra=st.dictionaries(WORDS, st.one_of(WORDS, st.integers(), st.booleans(), st.lists(WORDS)), max_size=3),
)
PICTURES = st.lists(st.binary(max_size=1100), max_size=13).map(tuple)


def write(folder, samples: list[tuple[Sample, tuple[bytes, ...]]]) -> Split:
    """Write a split of one shard by the format's own rules."""
    shard, rows = io.BytesIO(), []
    with webdataset.TarWriter(shard, mtime=0, encoder=False) as tar:
        for number, (sample, pictures) in enumerate(samples):
            members = {(f"{i}." if i else "") + "jpg": data for i, data in enumerate(pictures)}
            members["json"] = json.dumps(record_of(sample)).encode()
            tar.write({"__key__": f"{number:012d}", **members})
            start = rows[-1][1] + rows[-1][2] if rows else 0
            rows.append([0, start, sum(map(tar_size, members.values())), 0, 0, len(pictures), 1, 1, 2, 1])
    data = shard.getvalue()
    for row in rows:
        row[3] = zlib.crc32(data[row[1] : row[1] + row[2]])
    (folder / shard_name(0)).write_bytes(data)
    np.save(folder / INDEX, np.array([tuple(row) for row in rows], ROW))
    (folder / MANIFEST).write_text(json.dumps({"form": "chat", "fingerprint": "x"}))
    return Split(folder)


@given(samples=st.lists(st.tuples(SAMPLES, PICTURES), min_size=1, max_size=4))
@settings(max_examples=30)
def test_what_was_written_is_read_back(tmp_path_factory, samples):
    split = write(tmp_path_factory.mktemp("split"), samples)
    assert len(split) == len(samples)
    for number in reversed(range(len(samples))):
        stored = split.read(number)
        assert stored.sample == samples[number][0]
        assert stored.pictures == samples[number][1]


@given(data=st.binary(max_size=1600))
@settings(max_examples=30)
def test_a_member_takes_its_header_and_whole_blocks(data):
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        entry = tarfile.TarInfo("0.jpg")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
        assert tar.offset == tar_size(data)


def test_a_split_says_what_it_holds(tiny_shards):
    split = Split(tiny_shards / "finetune")
    assert len(split) == 24
    assert split.form is Form.chat
    assert Split(tiny_shards / "pretrain").form is Form.plain
    assert split.fingerprint != Split(tiny_shards / "finetune_held_out").fingerprint
    assert split.rows["tokens"].sum() == split.manifest["tokens"]


def test_a_flipped_byte_is_found_when_its_sample_is_read(tiny_shards, tmp_path):
    folder = tmp_path / "finetune"
    shutil.copytree(tiny_shards / "finetune", folder)
    row = Split(folder).rows[13]
    path = folder / shard_name(row["shard"])
    for at in (0, int(row["size"]) // 2, int(row["size"]) - 1):
        data = bytearray(path.read_bytes())
        data[int(row["offset"]) + at] ^= 1
        path.write_bytes(data)
        split = Split(folder)
        with pytest.raises(Unusable, match=rf"{path.name} is damaged at byte {row['offset']}"):
            split.read(13)
        assert split.read(12).sample.id == "train_12"
        data[int(row["offset"]) + at] ^= 1
        path.write_bytes(data)
    assert Split(folder).read(13).sample.id == "train_13"


def test_a_cut_shard_is_found_when_its_sample_is_read(tiny_shards, tmp_path):
    folder = tmp_path / "finetune"
    shutil.copytree(tiny_shards / "finetune", folder)
    path = folder / shard_name(0)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(Unusable, match="damaged"):
        Split(folder).read(9)


def test_a_folder_without_a_split_is_refused(tmp_path):
    with pytest.raises(Unusable, match="stage 02 was not given a corpus for pretrain"):
        Split(tmp_path / "pretrain")
