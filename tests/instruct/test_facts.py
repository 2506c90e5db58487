import json

import pytest

from vlm.config import SourceConfig
from vlm.errors import Unusable
from vlm.instruct.facts import facts_of


def test_captions_and_boxes_of_a_picture_come_together(captioned):
    known, useless = facts_of(captioned, 0)
    assert (len(known), useless) == (12, 0)
    assert (known[3].image.name, known[3].image_id) == ("03.png", 3)
    assert known[3].captions == ["A picture of a boat", "Somebody looks at a boat"]
    assert known[3].boxes == ["boat: [0.075, 0.1, 0.3, 0.35]"]


def test_raw_coco_boxes_and_golden_caps_boxes_tell_the_same(tmp_path):
    """The golden lines are of LLaVA's own caps_boxes form; the raw ones are what COCO's instances say, in pixels."""
    width, height = 640, 427
    raw = [("cup", [165.12, 31.6, 172.16, 219.9]), ("dining table", [0.0, 1.28, 640.0, 406.93])]
    golden = [("cup", [0.258, 0.074, 0.527, 0.589]), ("dining table", [0.0, 0.003, 1.0, 0.956])]
    line = {"id": "000000000007", "image": "000000000007.jpg", "captions": ["A cup on a table."]}
    line["instances"] = [{"category": label, "bbox": box} for label, box in golden]
    (tmp_path / "golden.jsonl").write_text(json.dumps(line) + "\n")
    images = [{"id": 7, "width": width, "height": height}]
    annotations = [{"image_id": 7, "category_id": i, "bbox": box} for i, (_, box) in enumerate(raw)]
    categories = [{"id": i, "name": label} for i, (label, _) in enumerate(raw)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    captions = {"annotations": [{"id": 1, "image_id": 7, "caption": "A cup on a table."}]}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    of_coco = SourceConfig(
        path=str(tmp_path / "captions.json"),
        annotations=str(tmp_path / "instances.json"),
        images=str(tmp_path),
        format="coco_captions",
    )
    of_golden = SourceConfig(path=str(tmp_path / "golden.jsonl"), images=str(tmp_path), format="caps_boxes")
    (from_coco,), (from_golden,) = (facts_of(source, 0)[0] for source in (of_coco, of_golden))
    assert (
        from_coco.boxes
        == from_golden.boxes
        == [
            "cup: [0.258, 0.074, 0.527, 0.589]",
            "dining table: [0.0, 0.003, 1.0, 0.956]",
        ]
    )
    assert from_coco.image.name == from_golden.image.name


def test_rows_without_a_caption_of_one_picture_are_counted(tiny_corpus):
    source = SourceConfig(path=str(tiny_corpus / "train.json"), images=str(tiny_corpus / "images"))
    known, useless = facts_of(source, 0)
    assert useless == 9  # of 24: without a picture, or with two
    assert all(facts.captions for facts in known)


def test_pictures_inside_a_corpus_cannot_be_named(tmp_path):
    with pytest.raises(Unusable, match="unpack them"):
        facts_of(SourceConfig(path=str(tmp_path), format="tars"), 0)
