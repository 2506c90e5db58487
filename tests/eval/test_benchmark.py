import json

import pytest
from PIL import Image

from vlm.config import SourceConfig, TaskConfig
from vlm.data.index import Split
from vlm.errors import Unusable
from vlm.eval.batch import Ask
from vlm.eval.benchmark import Benchmark
from vlm.eval.tasks import open_task, read_questions, swapped_pictures


@pytest.fixture
def held_out_files(tiny_corpus):
    return SourceConfig(path=str(tiny_corpus / "held_out.json"), images=str(tiny_corpus / "images"))


@pytest.fixture
def pope_files(tmp_path):
    """Three files of POPE that count their questions each from the beginning; pictures 0 to 3, one of them a GIF."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (20, 20), (60 * i, 0, 0)).save(tmp_path / "images" / f"{i}.jpg", "GIF" if i == 3 else "JPEG")
    sources = []
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": i, "image": f"{i}.jpg", "text": "Is there a dog?", "label": "no" if i % 2 else "yes"}
            for i in range(4)
        ]
        (tmp_path / f"{kind}.json").write_text("\n".join(map(json.dumps, lines)))
        sources.append(
            SourceConfig(path=str(tmp_path / f"{kind}.json"), images=str(tmp_path / "images"), format="pope")
        )
    return sources


def test_a_benchmark_s_own_files_are_asked_as_their_shards_are(held_out_files, tiny_shards, answerer, questions):
    task = TaskConfig(sources=[held_out_files])
    samples = open_task("t", task, None, 0)
    asked = read_questions("t", task, samples, answerer.chat)
    assert [(one.id, one.text, one.prompt.tolist(), one.own) for one in asked] == [
        (one.id, one.text, one.prompt.tolist(), one.own) for one in questions
    ]
    same = Split(tiny_shards / "finetune_held_out")
    batches = [answerer.collate(of, [Ask(one, one.prompt, one.own) for one in asked[:9]]) for of in (samples, same)]
    assert batches[0].pixels.equal(batches[1].pixels)
    assert [len(places) for places in swapped_pictures(asked, 0)] == [len(one.pictures) for one in asked]


def test_files_that_each_count_from_the_beginning_have_their_name_before_the_id(pope_files, answerer):
    task = TaskConfig(sources=pope_files, scorer="yes_no")
    samples = open_task("pope", task, None, 0)
    asked = read_questions("pope", task, samples, answerer.chat)
    assert [one.id for one in asked[:5]] == ["random/0", "random/1", "random/2", "random/3", "popular/0"]
    assert {one.category for one in asked} == {"random", "popular", "adversarial"}
    assert asked[0].pictures == asked[4].pictures != asked[1].pictures
    assert samples.read(3).pictures[0].startswith(b"\x89PNG")  # the GIF, as stage 02 would store it


def test_a_picture_that_vanished_is_named_before_anything_is_asked(pope_files, tmp_path):
    (tmp_path / "images" / "2.jpg").unlink()
    with pytest.raises(Unusable, match=r"task pope: the picture .*2\.jpg cannot be read: No such file"):
        open_task("pope", TaskConfig(sources=pope_files), None, 0)


def test_a_picture_that_vanishes_or_breaks_later_is_named(pope_files, tmp_path, answerer):
    samples = Benchmark("task pope", pope_files[:1], 0)
    (tmp_path / "images" / "0.jpg").unlink()
    with pytest.raises(Unusable, match=r"0\.jpg cannot be read"):
        samples.read(0)
    whole = (tmp_path / "images" / "1.jpg").read_bytes()
    (tmp_path / "images" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (asked,) = [one for one in read_questions("pope", TaskConfig(), samples, answerer.chat) if one.id == "1"]
    with pytest.raises(Unusable, match="the picture of question 1 cannot be decoded"):
        answerer.collate(samples, [Ask(asked, asked.prompt, asked.own)])


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (
            {"question_id": 1, "image": "0.jpg", "text": "Is it?", "label": "maybe"},
            "record 1 cannot be asked: no_answer",
        ),
        ({"question_id": 1, "image": "0.jpg", "text": "<image>Is it?", "label": "yes"}, "2 <image> for 1 pictures"),
    ],
)
def test_a_record_that_is_no_question_is_named(pope_files, record, fault):
    with open(pope_files[0].path, "a") as handle:  # noqa: PTH123
        handle.write("\n" + json.dumps(record))
    with pytest.raises(Unusable, match=fault):
        Benchmark("task pope", pope_files[:1], 0)


def test_a_split_without_shards_is_named():
    with pytest.raises(Unusable, match="task t asks about the split finetune_held_out, and there are no shards"):
        open_task("t", TaskConfig(), None, 0)
