import hashlib
import io
import json
import multiprocessing
import random
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from tqdm import tqdm

from vlm.config import DataConfig, Form, SplitConfig
from vlm.data.checks import Checks
from vlm.data.index import Split
from vlm.data.shards import Share, build, write_share, write_split
from vlm.data.sources import read
from vlm.errors import Unusable

from .conftest import files_of, rejects_of, samples_of


def test_the_index_and_webdataset_agree(tiny_shards):
    split = Split(tiny_shards / "finetune")
    urls = sorted(str(path) for path in split.folder.glob("*.tar"))
    read_back = [json.loads(sample["json"]) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert [stored.sample.id for stored in samples_of(split)] == [content["id"] for content in read_back]
    assert split.rows["images"].tolist() == [len(stored.pictures) for stored in samples_of(split)]


def test_rows_hold_the_sizes_and_tokens_that_training_will_see(tiny_shards, tiny_chat):
    for name in ("pretrain", "finetune"):
        split = Split(tiny_shards / name)
        for row, stored in zip(split.rows, samples_of(split), strict=True):
            encoded = tiny_chat.encode(stored.sample.turns, len(stored.pictures), split.form, 256)
            assert (row["tokens"], row["targets"]) == (len(encoded.ids), encoded.is_target.sum())
            size = Image.open(io.BytesIO(stored.pictures[0])).size if stored.pictures else (0, 0)
            assert (row["width"], row["height"]) == size
    assert split.manifest["longest"] == split.rows["tokens"].max()


def test_bytes_do_not_depend_on_the_number_of_workers(many, data_of, tiny_chat, tmp_path):
    for workers in (1, 3):
        build(data_of(workers, mine=many, max_reject_fraction=0.5), tiny_chat, 0, tmp_path / str(workers))
    one, three = files_of(tmp_path / "1"), files_of(tmp_path / "3")
    assert one == three
    assert [name for name in one if name.endswith(".tar")] == [f"finetune/{shard:06d}.tar" for shard in range(8)]
    assert set(one) - {f"finetune/{shard:06d}.tar" for shard in range(8)} == {
        "finetune/index.npy",
        "finetune/lengths.png",
        "finetune/shards.json",
        "finetune/rejects.jsonl",
        "finetune/left_out.jsonl",
    }


@pytest.mark.parametrize("missing", [False, True])
def test_shards_written_in_shares_equal_those_of_one_process(many, data_of, tiny_chat, tmp_path, missing):
    data = data_of(2, mine=many, held_out_fraction=0.2, max_reject_fraction=0.5)
    build(data, tiny_chat, 0, tmp_path / "one")
    for task in (2, 0) if missing else (2, 0, 1):
        write_share(data, tiny_chat, 0, tmp_path / "shares", Share(task, 3))
        shards = {int(path.stem) for path in (tmp_path / "shares/finetune").glob("*.tar")}
        assert {number % 3 for number in shards} == ({2} if task == 2 else {2, 0} if task == 0 else {0, 1, 2})
        assert not (tmp_path / "shares/finetune/index.npy").exists()
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shares/finetune").glob("*.tar")}
    build(data, tiny_chat, 0, tmp_path / "shares")
    assert files_of(tmp_path / "shares") == files_of(tmp_path / "one")
    assert all((tmp_path / "shares/finetune" / name).stat().st_mtime_ns == at for name, at in written.items())


def test_interrupted_work_goes_on_after_its_last_whole_shard(many, data_of, tiny_chat, tmp_path):
    data = data_of(mine=many, max_reject_fraction=0.5)
    build(data, tiny_chat, 0, tmp_path / "whole")
    checks = Checks(tiny_chat, Form.chat, data.max_tokens, data.max_pixels)

    def rows(failing_at: int | None):
        for number, row in enumerate(read(replace(many, name="mine"))):
            if number == failing_at:
                raise RuntimeError
            yield row

    folder = tmp_path / "broken/finetune"
    with pytest.raises(RuntimeError):
        write_split(folder, rows(18), ["mine"], checks, data)
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert written
    assert not (folder / "shards.json").exists()
    last = max(folder.glob("*.tar"))
    last.with_suffix(".json").unlink()  # as if it was killed between the shard and its sidecar
    last.write_bytes(b"half")
    (folder / "000007.tar.tmp").write_bytes(b"half")
    write_split(folder, rows(None), ["mine"], checks, data)
    assert files_of(folder) == files_of(tmp_path / "whole/finetune")
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert all(kept[name] == at for name, at in written.items() if name != last.name)


def test_killed_at_twenty_moments_and_run_again_the_bytes_are_the_same(many, data_of, tiny_chat, tmp_path):
    def run(folder: Path, workers: int) -> None:
        tqdm.set_lock(threading.RLock())  # its own is shared with forked processes, and never let go by a killed one
        data = data_of(workers, mine=many, max_reject_fraction=0.5, samples_per_shard=2, drop_duplicates=True)
        build(data, tiny_chat, 0, folder)

    run(tmp_path / "whole", 1)
    fork = multiprocessing.get_context("fork")
    moments = random.Random(0)
    states = set()
    for number in range(20):
        if number % 4 == 0:
            folder = tmp_path / f"killed_{number}"
        process = fork.Process(target=run, args=(folder, 1 + number % 3))
        process.start()
        wanted = len(list(folder.rglob("*.tar"))) + moments.randrange(6)
        while process.is_alive() and len(list(folder.rglob("*.tar"))) < wanted:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.join()
        states.add(len(list(folder.rglob("*.tar"))) - 100 * (folder / "finetune/shards.json").exists())
        if number % 4 == 3:
            run(folder, 2)
            assert files_of(folder) == files_of(tmp_path / "whole")
    assert len(states) > 3  # or the moments were all before or after the work


def test_whole_work_is_not_done_again(many, data_of, tiny_chat, tmp_path):
    data = data_of(mine=many, max_reject_fraction=0.5)
    first = build(data, tiny_chat, 0, tmp_path)
    stale = tmp_path / "finetune/000001.json"
    stale.write_text("{}")  # as if it was killed after the manifest, before the sidecars were removed
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    assert build(data, tiny_chat, 0, tmp_path) == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    assert not stale.exists()


def test_rejects_are_listed_with_their_reason_and_the_rest_is_kept(many, data_of, tiny_chat, tmp_path):
    figures = build(data_of(mine=many, max_reject_fraction=0.1), tiny_chat, 0, tmp_path)["finetune"]
    rejects = rejects_of(tmp_path / "finetune")
    assert [(reject["source"], reject["id"], reject["reason"]) for reject in rejects] == [
        ("mine", "7", "empty"),
        ("mine", "19", "corrupt"),
        ("mine", "23", "missing_image"),
    ]
    assert all("images/" in reject["detail"] for reject in rejects)
    assert figures["reasons"] == {"empty": 1, "corrupt": 1, "missing_image": 1}
    assert (figures["read"], figures["samples"]) == (30, 27)
    ids = [stored.sample.id for stored in samples_of(Split(tmp_path / "finetune"))]
    assert ids == [str(number) for number in range(30) if number not in {7, 19, 23}]


def test_too_many_rejects_fail_in_one_line(many, data_of, tiny_chat, tmp_path):
    with pytest.raises(Unusable, match="3 of 30 samples rejected") as fault:
        build(data_of(mine=many, max_reject_fraction=0.09), tiny_chat, 0, tmp_path)
    assert "\n" not in str(fault.value)
    assert "empty 1" in str(fault.value)
    assert str(tmp_path / "finetune/rejects.jsonl") in str(fault.value)
    assert len(rejects_of(tmp_path / "finetune")) == 3
    assert not (tmp_path / "finetune/shards.json").exists()


def test_a_corpus_that_was_mended_meanwhile_gives_what_it_gives_from_the_start(
    many, encoded, record, data_of, tiny_chat, tmp_path
):
    data = data_of(2, mine=many)
    with pytest.raises(Unusable, match="3 of 30 samples rejected"):
        build(data, tiny_chat, 0, tmp_path / "mended")
    for number in (7, 19, 23):
        (Path(many.images) / f"{number}.png").write_bytes(encoded(number))
    records = [record(number, f"{number}.png") for number in range(30) if number not in {5, 6, 7, 8, 9}]
    Path(many.path).write_text(json.dumps(records))
    build(data, tiny_chat, 0, tmp_path / "mended")
    build(data, tiny_chat, 0, tmp_path / "fresh")
    assert files_of(tmp_path / "mended") == files_of(tmp_path / "fresh")


def test_a_corpus_of_which_nothing_is_left_fails_in_one_line(corpus, record, data_of, tiny_chat, tmp_path):
    bad = corpus([record("1", "none.png")])
    with pytest.raises(Unusable, match="1 of 1 samples rejected"):
        build(data_of(mine=bad, max_reject_fraction=1.0), tiny_chat, 0, tmp_path / "out")
    with pytest.raises(Unusable, match="no rows"):
        build(data_of(mine=corpus([], "empty")), tiny_chat, 0, tmp_path / "other")
    with pytest.raises(Unusable, match="no corpus"):
        build(DataConfig(), tiny_chat, 0, tmp_path / "third")


def test_hostile_records_are_rejected_and_stop_nothing(corpus, record, encoded, data_of, tiny_chat, tmp_path):
    good = record("good", "a.png")
    bad = {
        "zero byte": record("zero byte", "a\0.png"),
        "half \ud83d": record("half \ud83d", "\ud83d.png"),
        "folder": record("folder", "."),
        "long": record("long", "a" * 5000),
        "number": record("number") | {"image": 5},
    }
    kept = record("kept", "a.png") | {"category": "half \ud83d"}
    source = corpus([], pictures={"a.png": encoded()})
    Path(source.path).write_text("\n".join(map(json.dumps, [good, *bad.values(), [1], kept])))
    build(data_of(mine=source, max_reject_fraction=0.9), tiny_chat, 0, tmp_path / "out")
    rejects = rejects_of(tmp_path / "out/finetune")
    assert [reject["id"] for reject in rejects] == [*bad, "row6"]
    assert {reject["reason"] for reject in rejects} == {"missing_image", "format"}
    stored = samples_of(Split(tmp_path / "out/finetune"))
    assert [one.sample.id for one in stored] == ["good", "kept"]
    assert stored[1].sample.extra == {"category": "half \ud83d"}


def test_the_content_decides_the_format_and_not_the_name(corpus, record, encoded, data_of, tiny_chat, tmp_path):
    pictures = {
        "a.jpg": encoded(form="PNG"),
        "b.jpg": encoded(form="GIF"),
        "c.png": encoded(form="JPEG"),
        "d": encoded(),
    }
    source = corpus([record(name, name) for name in pictures], pictures=pictures)
    build(data_of(mine=source), tiny_chat, 0, tmp_path / "out")
    (sample_tar,) = (tmp_path / "out/finetune").glob("*.tar")
    with tarfile.open(sample_tar) as tar:
        extensions = [name.split(".", 1)[1] for name in tar.getnames() if not name.endswith(".json")]
    assert extensions == ["png", "png", "jpg", "png"]


def test_many_pictures_keep_their_order(corpus, record, encoded, data_of, tiny_chat, tmp_path):
    pictures = {f"{seed}.png": encoded(seed) for seed in range(12)}
    order = [11, 3, 0, 7, 1, 10, 2, 9, 4, 8, 5, 6, 3]
    source = corpus([record("x", *(f"{seed}.png" for seed in order))], pictures=pictures)
    build(data_of(mine=source), tiny_chat, 0, tmp_path / "out")
    stored = Split(tmp_path / "out/finetune").read(0)
    assert stored.pictures == tuple(pictures[f"{seed}.png"] for seed in order)


def test_corpora_that_share_names_keep_their_own_answers_and_pictures(
    corpus, record, encoded, data_of, tiny_chat, tmp_path
):
    sources = {
        name: corpus([record("1", "same.png", answer=name)], name, {"same.png": encoded(seed)})
        for seed, name in enumerate(("first", "second"))
    }
    build(data_of(**sources), tiny_chat, 0, tmp_path / "out")
    split = Split(tmp_path / "out/finetune")
    for number, (seed, name) in enumerate(enumerate(sources)):
        stored = split.read(number)
        assert stored.sample.source == split.manifest["sources"][split.rows[number]["source"]] == name
        assert stored.sample.turns[-1].text == name
        assert stored.pictures == (encoded(seed),)


def test_ids_that_mix_text_and_numbers_stay_text(corpus, record, data_of, tiny_chat, tmp_path):
    source = corpus([record("007"), record(7), record("x")])
    build(data_of(mine=source), tiny_chat, 0, tmp_path / "out")
    ids = [stored.sample.id for stored in samples_of(Split(tmp_path / "out/finetune"))]
    assert ids == ["007", "7", "x"]


def test_held_out_pictures_are_never_trained_on(corpus, record, encoded, data_of, tiny_chat, tmp_path):
    pictures = {f"{seed}.png": encoded(seed) for seed in range(20)}
    source = corpus([record(number, f"{number % 20}.png") for number in range(60)], pictures=pictures)
    figures = build(data_of(mine=source, held_out_fraction=0.3), tiny_chat, 0, tmp_path / "0")
    sides = [samples_of(Split(tmp_path / "0" / name)) for name in ("finetune", "finetune_held_out")]
    trained, held_out = ({stored.pictures for stored in side} for side in sides)
    assert trained
    assert held_out
    assert not trained & held_out
    assert sorted(int(stored.sample.id) for side in sides for stored in side) == list(range(60))
    assert figures["finetune_held_out"]["samples"] == 3 * len(held_out)
    build(data_of(mine=source, held_out_fraction=0.3), tiny_chat, 1, tmp_path / "1")
    other = {stored.pictures for stored in samples_of(Split(tmp_path / "1/finetune_held_out"))}
    assert other != held_out


def test_long_samples_are_cut_at_an_exchange_and_counted(corpus, record, data_of, tiny_chat, tmp_path):
    turns = record("x")["conversations"]
    source = corpus([{"id": "x", "conversations": turns * 9}, record("y")])
    figures = build(data_of(mine=source, max_tokens=100), tiny_chat, 0, tmp_path / "out")["finetune"]
    assert figures["longest"] <= 100
    assert figures["cut_turns"] > 0
    assert figures["cut_turns"] % 2 == 0


def test_the_manifest_holds_the_sum_of_every_shard(tiny_shards):
    split = Split(tiny_shards / "finetune")
    for shard in split.manifest["shards"]:
        assert hashlib.sha256((split.folder / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    assert sum(shard["samples"] for shard in split.manifest["shards"]) == len(split)
    assert np.array_equal(np.bincount(split.rows["shard"]), [shard["samples"] for shard in split.manifest["shards"]])


def test_the_forms_of_both_trainings_are_their_own(corpus, record, encoded, tiny_chat, tmp_path):
    source = corpus([record("1", "a.png")], pictures={"a.png": encoded()})
    pretrain = SplitConfig(sources=[source], form=Form.plain)
    figures = build(DataConfig(pretrain=pretrain), tiny_chat, 0, tmp_path / "out")
    assert set(figures) == {"pretrain"}
    assert Split(tmp_path / "out/pretrain").form is Form.plain
    assert figures["pretrain"]["tokens"] == 4 + figures["pretrain"]["targets"]
