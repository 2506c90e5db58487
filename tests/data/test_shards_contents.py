"""Which samples the shards hold, and what happens when they cannot be written."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm import files
from vlm.data.checks import Checks
from vlm.data.index import Split
from vlm.data.shards import build
from vlm.errors import Hindered, Unusable

from .conftest import files_of, rejects_of, samples_of


@pytest.fixture
def doubled(corpus, record, encoded):
    """Two sources: the second repeats three samples of the first with other names, and one with another answer."""
    pictures = {f"{number}.png": encoded(number) for number in range(8)}
    first = corpus([text_of(record, n) for n in range(8)], "first", pictures)
    again = {f"copy_{number}.png": pictures[f"{number}.png"] for number in range(4)}
    second = [text_of(record, n, f"copy_{n}.png", "blue" if n == 3 else "red") for n in range(4)]
    return first, corpus(second, "second", again)


def text_of(record, number: int, name: str | None = None, answer: str = "red") -> dict:
    return record("x", name or f"{number}.png", answer=answer) | {"id": f"{name or number}"}


def test_duplicates_are_counted_and_kept(doubled, data_of, tiny_chat, tmp_path):
    first, second = doubled
    figures = build(data_of(first=first, second=second), tiny_chat, 0, tmp_path)["finetune"]
    assert (figures["samples"], figures["duplicates"], figures["left_out"]) == (12, 3, 0)


def test_duplicates_are_left_out_on_request_with_any_number_of_workers(doubled, data_of, tiny_chat, tmp_path):
    first, second = doubled
    for workers in (1, 3):
        data = data_of(workers, first=first, second=second, drop_duplicates=True, max_reject_fraction=0.0)
        figures = build(data, tiny_chat, 0, tmp_path / str(workers))["finetune"]
        assert (figures["samples"], figures["duplicates"], figures["left_out"]) == (9, 3, 3)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
    left_out = [json.loads(line) for line in (tmp_path / "1/finetune/left_out.jsonl").read_text().splitlines()]
    assert [(one["source"], one["id"], one["reason"]) for one in left_out] == [
        ("second", f"copy_{n}.png", "duplicate") for n in range(3)
    ]
    assert rejects_of(tmp_path / "1/finetune") == []


def test_a_repeated_source_is_no_duplicate(doubled, data_of, tiny_chat, tmp_path):
    first, second = doubled
    data = data_of(first=replace(first, repeat=2), second=second, drop_duplicates=True)
    figures = build(data, tiny_chat, 0, tmp_path)["finetune"]
    assert (figures["read"], figures["samples"], figures["duplicates"]) == (20, 17, 3)
    assert Split(tmp_path / "finetune").manifest["by_source"]["first"]["samples"] == 16


def test_training_pictures_that_are_excluded_are_left_out(corpus, record, data_of, tiny_chat, tmp_path):
    def photograph(seed: int, form: str) -> bytes:
        small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(small).resize((90, 70), Image.Resampling.BICUBIC).save(out, form)
        return out.getvalue()

    pictures = {f"{seed}.png": photograph(seed, "PNG") for seed in range(20)}
    mine = corpus([record(n, f"{n}.png") for n in range(20)], "mine", pictures)
    asked = {"same.png": pictures["3.png"], "like.jpg": photograph(7, "JPEG")}
    evaluation = corpus([record(name, name) for name in asked], "evaluation", asked)
    for workers in (1, 3):
        data = data_of(workers, mine=mine, exclude=[evaluation], max_reject_fraction=0.0)
        data.finetune.held_out = [replace(evaluation, name="evaluation")]
        figures = build(data, tiny_chat, 0, tmp_path / str(workers))
    assert figures["finetune"]["reasons_left_out"] == {"excluded_same": 1, "excluded_similar": 1}
    assert (figures["finetune"]["samples"], figures["finetune"]["rejected"]) == (18, 0)
    assert figures["finetune_held_out"]["samples"] == 2
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
    left_out = (tmp_path / "1/finetune/left_out.jsonl").read_text()
    assert "same.png" in left_out
    assert "like.jpg" in left_out


def test_samples_on_both_sides_are_left_out_and_no_rejects(corpus, record, encoded, data_of, tiny_chat, tmp_path):
    pictures = {f"{number}.png": encoded(number) for number in range(10)}
    records = [record(n, f"{n}.png", f"{(n + 1) % 10}.png") for n in range(10)] + [
        record(f"a{n}", f"{n}.png") for n in range(10)
    ]
    data = data_of(mine=corpus(records, pictures=pictures), held_out_fraction=0.4, max_reject_fraction=0.0)
    figures = build(data, tiny_chat, 0, tmp_path)
    count = figures["finetune"]["left_out"]
    assert figures["finetune"]["reasons_left_out"] == {"both_sides": count}
    assert count > 0
    assert sum(part["samples"] for part in figures.values()) == 20 - count
    sides = [{data for one in samples_of(Split(tmp_path / part)) for data in one.pictures} for part in figures]
    assert not sides[0] & sides[1]


def test_pictures_straight_from_a_zip_give_the_same_shards_as_their_folder(many, data_of, tiny_chat, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for path in Path(many.images).iterdir():
            made.write(path, path.name)
    packed = replace(many, images=str(tmp_path / "images.zip"))
    for name, source in (("loose", many), ("packed", packed)):
        data = data_of(2, mine=source, max_reject_fraction=0.5, held_out_fraction=0.3)
        build(data, tiny_chat, 0, tmp_path / name)
    loose, packed = (files_of(tmp_path / name) for name in ("loose", "packed"))
    assert [name for name in loose if name.endswith((".tar", ".npy"))]
    assert all(packed[name] == loose[name] for name in loose if name.endswith((".tar", ".npy")))


def test_chinese_text_is_stored_byte_for_byte(corpus, record, encoded, data_of, tiny_chat, tmp_path):
    caption = "一个 戴着帽子 的 女人🙂坐在海边「沙滩」的椅子上　"
    build(data_of(mine=corpus([record("1", answer=caption)])), tiny_chat, 0, tmp_path)
    assert caption.encode() in (tmp_path / "finetune/000000.tar").read_bytes()
    assert Split(tmp_path / "finetune").read(0).sample.turns[1].text == caption


def test_json_cut_in_the_middle_is_one_line_and_earlier_shards_are_kept(many, data_of, tiny_chat, tmp_path):
    text = Path(many.path).read_text()
    Path(many.path).write_text(text[: len(text) * 3 // 4])
    data = data_of(mine=many, max_reject_fraction=0.5)
    with pytest.raises(Unusable, match="all.json is no whole JSON list") as fault:
        build(data, tiny_chat, 0, tmp_path)
    assert "\n" not in str(fault.value)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "finetune").glob("*.tar")}
    assert len(kept) > 2
    Path(many.path).write_text(text)
    build(data, tiny_chat, 0, tmp_path)
    assert all((tmp_path / "finetune" / name).stat().st_mtime_ns == at for name, at in kept.items())


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root can mount a small disk")
def test_a_full_disk_is_one_line_and_earlier_shards_are_kept(many, data_of, tiny_chat, tmp_path):
    data = data_of(2, mine=many, max_reject_fraction=0.5)
    build(data, tiny_chat, 0, tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(Unusable, match="cannot be written: No space left on device") as fault:
            build(data, tiny_chat, 0, disk)
        assert "\n" not in str(fault.value)
        kept = sorted((disk / "finetune").glob("*.tar"))
        assert kept
        assert all(files_of(tmp_path / "whole")[f"finetune/{path.name}"] == path.read_bytes() for path in kept)
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        build(data, tiny_chat, 0, disk)
        assert files_of(disk) == files_of(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fails_leaves_no_half_file(many, data_of, tiny_chat, tmp_path, monkeypatch):
    def fails(path: Path) -> None:
        assert path.stat().st_size  # something of the file is there
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", fails)
    with pytest.raises(Unusable, match="No space left on device"):
        build(data_of(mine=many, max_reject_fraction=0.5), tiny_chat, 0, tmp_path / "out")
    assert files_of(tmp_path / "out") == {}


def test_a_worker_that_is_killed_is_one_line(many, data_of, tiny_chat, tmp_path, monkeypatch):
    monkeypatch.setattr(Checks, "of", lambda checks, row, lengths: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(Hindered, match="a worker process was killed"):
        build(data_of(mine=many), tiny_chat, 0, tmp_path)
