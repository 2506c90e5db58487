import json

import pytest

from vlm.config import Captions, SourceConfig
from vlm.data.samples import Reject, Turn
from vlm.data.sources import read
from vlm.errors import Unusable

CAPTIONS = [
    {"id": 10 * number + k, "image_id": number, "caption": f"图 {number}.{k}\n"} for k in (1, 2) for number in (9, 7)
]
IMAGES = [{"id": 9, "file_name": "nine.jpg", "width": 200, "height": 100}]
INSTANCES = {
    "images": IMAGES,
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [{"image_id": 9, "category_id": 3, "bbox": [20, 10, 100, 25]}],
}


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a captions file and reads its rows."""

    def write(content: object, instances: object = None, seed: int = 0, **settings) -> list:
        (tmp_path / "captions.json").write_text(json.dumps(content))
        if instances is not None:
            (tmp_path / "instances.json").write_text(json.dumps(instances))
            settings["annotations"] = str(tmp_path / "instances.json")
        source = SourceConfig(
            path=str(tmp_path / "captions.json"), images=str(tmp_path), format="coco_captions", **settings
        )
        return list(read(source, seed))

    return write


def test_every_caption_is_a_sample_of_its_own(written):
    rows = written({"images": IMAGES, "annotations": CAPTIONS})
    assert [row.id for row in rows] == ["91", "71", "92", "72"]
    assert rows[0].sample.turns == (
        Turn("user", "<image>\nProvide a brief description of the given image."),
        Turn("assistant", "图 9.1\n"),
    )
    assert [row.sample.images[0].name for row in rows] == ["nine.jpg", "000000000007.jpg"] * 2
    assert rows[1].sample.extra == {"image_id": 7}


def test_pictures_of_2014_are_named_by_a_setting(written):
    rows = written({"annotations": CAPTIONS}, image_names="COCO_train2014_{:012d}.jpg")
    assert rows[0].sample.images[0].name == "COCO_train2014_000000000009.jpg"


def test_one_caption_of_each_picture_is_chosen_by_the_seed(written):
    captions = [{"id": 10 * n + k, "image_id": n, "caption": "x"} for n in range(20) for k in range(5)]
    chosen = [[row.id for row in written({"annotations": captions}, seed=s, captions=Captions.one)] for s in (0, 0, 1)]
    assert [int(identity) // 10 for identity in chosen[0]] == list(range(20))
    assert chosen[0] == chosen[1] != chosen[2]
    assert len({int(identity) % 10 for identity in chosen[0]}) > 1


def test_boxes_travel_as_shares_of_the_picture(written):
    rows = written({"annotations": CAPTIONS}, INSTANCES)
    assert rows[0].sample.extra["boxes"] == [{"category": "cat", "bbox": [0.1, 0.1, 0.6, 0.35]}]
    assert "boxes" not in rows[1].sample.extra


@pytest.mark.parametrize("wrong", [{**INSTANCES, "categories": [{"id": 3}]}, {**INSTANCES, "annotations": [[1]]}])
def test_a_file_of_other_annotations_is_named(written, wrong):
    with pytest.raises(Unusable, match="instances.json is no file of COCO instances"):
        written({"annotations": CAPTIONS}, wrong)


@pytest.mark.parametrize("captions", Captions)
@pytest.mark.parametrize(
    "record", [[1], {"image_id": "a", "caption": "x"}, {"image_id": [1], "caption": "x"}, {"image_id": 9}]
)
def test_a_record_of_another_shape_is_rejected_in_its_place(written, record, captions):
    rows = written({"annotations": [CAPTIONS[0], record, CAPTIONS[1]]}, captions=captions)
    if captions is Captions.one and record == {"image_id": 9}:  # its picture has a better one, or it is the one
        return
    assert isinstance(rows[1].sample, Reject)
    assert rows[1].sample.code == "format"


def test_a_prompt_is_asked_instead(written):
    rows = written({"annotations": CAPTIONS}, prompt="请描述这张图片。")
    assert rows[0].sample.turns[0].text == "<image>\n请描述这张图片。"
