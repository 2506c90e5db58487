import json
import multiprocessing
import os
import signal
import tarfile

import webdataset

from vlm.data.shard import end_with


def test_webdataset_reads_back_every_sample(tiny_shards, tiny_corpus):
    records = {record["id"]: record for record in json.loads((tiny_corpus / "train.json").read_text())}
    urls = sorted(str(path) for path in (tiny_shards / "finetune").glob("*.tar"))
    read_back = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [json.loads(sample["json"])["id"] for sample in read_back] == list(records)
    for sample in read_back:
        content = json.loads(sample["json"])
        record = records[content["id"]]
        assert [turn["text"] for turn in content["turns"]] == [turn["value"] for turn in record["conversations"]]
        assert content["extra"] == {"question_id": record["question_id"], "category": record["category"]}
        names = record.get("image", [])
        names = [names] if isinstance(names, str) else names
        pictures = [key for key in sample if key.split(".")[-1] in {"jpg", "png"}]
        pictures.sort(key=lambda key: int(key.split(".")[0]) if "." in key else 0)
        assert [sample[key] for key in pictures] == [(tiny_corpus / "images" / name).read_bytes() for name in names]


def test_a_shard_is_an_ordinary_tar_of_whole_samples(tiny_shards):
    for path in sorted((tiny_shards / "finetune").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uname, m.gname, m.mode) for m in members} == {(0, "vlm", "vlm", 0o644)}
        keys = [m.name.split(".")[0] for m in members]
        assert keys == sorted(keys)
        assert {key[:6] for key in keys} == {path.stem}


def test_ctrl_c_is_left_to_the_parent():
    def strike_itself(parent: int) -> None:
        end_with(parent)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR2)

    worker = multiprocessing.get_context("fork").Process(target=strike_itself, args=(os.getpid(),))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
