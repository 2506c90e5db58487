import json

import pytest

from vlm.config import SourceConfig
from vlm.data.samples import Reject
from vlm.data.sources import read

GOOD = {
    "id": "7",
    "image": "7.jpg",
    "captions": ["A dog.", "狗"],
    "instances": [{"category": "dog", "bbox": [0, 0.1, 0.25, 1]}],
}


def rows(tmp_path, *records):
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceConfig(path=str(tmp_path / "all.jsonl"), images=str(tmp_path), format="caps_boxes")
    return list(read(source))


def test_every_caption_is_a_sample_and_the_boxes_travel_along(tmp_path):
    found = rows(tmp_path, GOOD)
    assert [(row.id, row.sample.turns[1].text) for row in found] == [("7_0", "A dog."), ("7_1", "狗")]
    assert found[1].sample.extra == {"image_id": "7", "boxes": GOOD["instances"]}
    assert found[1].sample.images[0].name == "7.jpg"


@pytest.mark.parametrize(
    "wrong",
    [
        {"captions": "A dog."},
        {"captions": [3]},
        {"image": None},
        {"instances": {"dog": 1}},
        {"instances": [{"category": "dog", "bbox": [0, 10, 200, 300]}]},
        {"instances": [{"category": "dog", "bbox": [0, 0.1, 0.2]}]},
    ],
)
def test_a_record_of_another_shape_is_rejected_where_it_stands(tmp_path, wrong):
    bad, good = rows(tmp_path, GOOD | {"captions": ["A dog."]} | wrong, GOOD)[::2][:2]
    assert isinstance(bad.sample, Reject)
    assert bad.sample.code == "format"
    assert not isinstance(good.sample, Reject)
