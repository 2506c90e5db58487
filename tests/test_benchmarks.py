"""What could be silently wrong with a comparison: its ratios, and contestants that are given other samples."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import run
from benchmarks.table import OURS, Row, summary


def test_speed_is_a_ratio_to_the_best_peer_and_its_spread_is_that_of_the_rounds():
    row = Row(
        "step", "samples/s", 1.4, figures={OURS: [30.0, 33.0, 60.0], "a": [20.0, 22.0, 30.0], "b": [2.0, 1.0, 9.0]}
    )
    assert row.best_peer == "a" and row.ratio == 1.5 and row.ratios == [1.5, 1.5, 2.0] and row.met


def test_ours_with_other_settings_is_no_peer():
    row = Row("step", "samples/s", 1.4, figures={OURS: [30.0], f"{OURS}, recompute=full": [25.0], "a": [20.0]})
    assert (row.best_peer, row.ratio) == ("a", 1.5)


def test_a_time_is_turned_over_and_a_share_is_not():
    time = Row("start", "s", 50, True, figures={OURS: [0.5], "list": [10.0], "index": [5.0]})
    share = Row("memory", "MiB", 0.7, True, True, figures={OURS: [6.0], "a": [10.0], "b": [8.0]})
    assert (time.best_peer, time.ratio, time.met) == ("index", 10.0, False)
    assert (share.best_peer, share.ratio, share.met) == ("b", 0.75, False)


def test_a_goal_beside_a_named_peer_stays_open_without_it():
    row = Row("pixels", "pictures/s", 1.7, against="fast", figures={OURS: [9.0], "slow": [1.0]})
    row.missing["fast"] = "no torchvision"
    assert row.ratio is None and row.met is None
    assert "open" in summary([row]) and "took no part in pixels: fast: no torchvision" in summary([row])


def test_our_own_figure_is_judged_even_where_all_are_equal():
    assert not Row("exact", "batches", 20, goal_is_figure=True, figures={OURS: [0], "a": [0]}).met
    assert Row("growth", "slope", 1.1, True, goal_is_figure=True, figures={OURS: [1.0]}).met


@pytest.mark.slow
def test_peers_are_given_the_tokens_and_targets_that_we_train_on(tmp_path):
    from benchmarks import training
    from vlm.data.chat import Chat
    from vlm.data.index import Split

    for case in ("captions", "mixed"):
        (tmp_path / case).mkdir()
        asked = training.make(tmp_path / case, case, "tiny", rows=4, steps=1)
        chat, split = Chat.of_model(Path(asked["model"])), Split(Path(asked["split"]))
        listed = json.loads(Path(asked["listed"]).read_text())
        assert len(listed) == len(split) == asked["samples"]
        for number, record in enumerate(listed):
            stored = split.read(number)
            ours = chat.encode(stored.sample.turns, len(stored.pictures), split.form, 1 << 20)
            image = chat.image_token
            prompt, answer = (
                chat.tokenizer(said["content"].replace(image, image * chat.image_tokens)).input_ids
                for said in record["messages"]
            )
            assert ours.ids.tolist()[: len(prompt) + len(answer)] == prompt + answer
            assert ours.is_target.sum() == len(answer) and ours.is_target[len(prompt)]
            assert [Path(path).read_bytes() for path in record["images"]] == list(stored.pictures)


def test_all_contestants_of_the_quality_table_learn_every_answer_that_we_learn(tmp_path):
    from transformers import AutoProcessor

    from benchmarks import quality_frameworks, scaled
    from benchmarks.conversations import IGNORED, Conversations
    from vlm.config import Form
    from vlm.data.chat import Chat
    from vlm.data.samples import Turn

    model = scaled.make_model(tmp_path / "parts", scaled.SHAPES["tiny"])
    texts = ["<image>\nWhat is it?", "a cat", "Where?", "on the mat"]
    said = [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 2, texts, strict=True)]
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images/0.jpg")
    (tmp_path / "finetune.json").write_text(json.dumps([{"id": "0", "image": "0.jpg", "conversations": said}]))

    chat = Chat.of_model(model)
    turns = tuple(Turn(role, text) for role, text in zip(("user", "assistant") * 2, texts, strict=True))
    ours = chat.encode(turns, 1, Form.chat, 1 << 20)
    processor = AutoProcessor.from_pretrained(model)
    trainers = Conversations(tmp_path / "finetune.json", tmp_path / "images", processor, 3)[2]
    records = quality_frameworks.records(model, tmp_path, 3)
    written = [said["content"] for said in records[2]["messages"]]
    parts = [text.replace("<image>", chat.image_token * chat.image_tokens) for text in written]
    parts = [chat.tokenizer(text, add_special_tokens=False).input_ids for text in parts]

    length, end = len(trainers["input_ids"]), chat.tokenizer.eos_token
    assert len(records) == 3 and written[1::2] == ["a cat" + end, "on the mat" + end]
    assert ours.ids[:length].tolist() == trainers["input_ids"].tolist() == sum(parts, [])
    learnt = [number % 2 == 1 for number, part in enumerate(parts) for _ in part]
    assert ours.is_target[:length].tolist() == (trainers["labels"] != IGNORED).tolist() == learnt
    assert not ours.is_target[length:].any()


def test_a_line_of_the_gpu_table_ends_where_nobody_gives_it_its_turn(monkeypatch, tmp_path):
    from benchmarks import gpu_line

    begun = []
    monkeypatch.setattr(gpu_line, "make", lambda *given: begun.append(given))
    monkeypatch.setattr("sys.argv", ["gpu_line", "make", "captions", str(tmp_path), "tiny", "4"])
    for turn, count in (("", 0), ("go\n", 1)):
        monkeypatch.setattr("sys.stdin", io.StringIO(turn))
        gpu_line.main()
        assert len(begun) == count


def test_ours_in_the_quality_row_is_no_peer_of_itself(monkeypatch):
    figures = {"score": 90.0, "interval": [89.0, 91.0], "samples": 4, "seconds": 2.0, "shuffled": 34.0}
    names = ("stages 03 and 04", "stage 04 alone", "ms-swift: 0.001")
    told = {"missing": {}, **{name: {**figures, "score": 90.0 + at} for at, name in enumerate(names)}}
    monkeypatch.setattr(run, "last_line", lambda *_: told)
    (row,) = run.quality(run.Size())
    assert (row.best_peer, row.median(OURS)) == ("ms-swift: 0.001", 90.0)
