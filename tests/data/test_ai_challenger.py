import json

import pytest

from vlm.config import Captions, SourceConfig
from vlm.data.sources import read
from vlm.errors import Unusable

RECORDS = [
    {"url": "http://x/1", "image_id": "8f00.jpg", "caption": [f"一个 女人 坐在 海边 第{k}句🙂" for k in range(5)]},
    {"url": "http://x/2", "image_id": "9a11.jpg", "caption": ["两个人"]},
]


@pytest.fixture
def rows_of(tmp_path):
    def write(records: list, seed: int = 0, **settings) -> list:
        (tmp_path / "captions.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        source = SourceConfig(
            path=str(tmp_path / "captions.json"), images=str(tmp_path), format="ai_challenger", **settings
        )
        return list(read(source, seed))

    return write


def test_all_five_captions_are_samples_byte_for_byte(rows_of):
    rows = rows_of(RECORDS, prompt="请描述这张图片。")
    assert [row.id for row in rows] == [f"8f00.jpg#{k}" for k in range(5)] + ["9a11.jpg#0"]
    assert [row.sample.turns[1].text for row in rows] == [text for one in RECORDS for text in one["caption"]]
    assert rows[0].sample.turns[0].text == "<image>\n请描述这张图片。"
    assert [row.sample.images[0].name for row in rows] == ["8f00.jpg"] * 5 + ["9a11.jpg"]


def test_one_of_them_is_chosen_by_the_seed(rows_of):
    records = [{**RECORDS[0], "image_id": f"{n}.jpg"} for n in range(20)]
    chosen = [[row.id for row in rows_of(records, seed, captions=Captions.one)] for seed in (0, 0, 1)]
    assert [identity.split("#")[0] for identity in chosen[0]] == [f"{n}.jpg" for n in range(20)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_one_of_several_prompts_is_drawn_for_each_caption_by_the_seed(rows_of):
    prompts = ["请描述这张图片。", "这张图片里有什么？"]
    records = [{**RECORDS[0], "image_id": f"{n}.jpg"} for n in range(8)]
    seen = [[row.sample.turns[0].text for row in rows_of(records, seed, prompts=prompts)] for seed in (0, 0, 1)]
    assert set(seen[0]) == {f"<image>\n{prompt}" for prompt in prompts}
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("wrong", [{"prompts": []}, {"prompts": ["a"], "prompt": "b"}], ids=str)
def test_prompts_that_leave_no_choice_or_two_are_refused(rows_of, wrong):
    with pytest.raises(Unusable, match="captions: prompts holds at least one"):
        rows_of(RECORDS, **wrong)


@pytest.mark.parametrize("record", [7, {}, {"image_id": "a"}, {"image_id": "a", "caption": []}, {"caption": ["x"]}])
def test_a_record_of_another_shape_is_rejected_in_its_place(rows_of, record):
    rows = rows_of([RECORDS[1], record, RECORDS[1]])
    assert [getattr(row.sample, "code", None) for row in rows] == [None, "format", None]
    assert rows[1].id == "row1"
