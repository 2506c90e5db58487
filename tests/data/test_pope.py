import json

from vlm.config import SourceConfig
from vlm.data.sources import read


def test_questions_are_answered_by_their_label(tmp_path):
    records = [
        {"question_id": 1, "image": "COCO_val2014_1.jpg", "text": "Is there a tv?", "label": "yes"},
        {"question_id": 2, "image": "COCO_val2014_1.jpg", "text": "Is there a cat?", "label": "no"},
        {"question_id": 3, "image": "COCO_val2014_1.jpg", "text": "Is there a cat?", "label": "maybe"},
        {"question_id": 4, "text": "Is there a cat?", "label": "no"},
        5,
    ]
    (tmp_path / "pope.jsonl").write_text("\n".join(map(json.dumps, records)))
    source = SourceConfig(path=str(tmp_path / "pope.jsonl"), images=str(tmp_path), format="pope")
    rows = list(read(source))
    assert [row.id for row in rows] == ["1", "2", "3", "4", "row4"]
    assert [getattr(row.sample, "code", None) for row in rows] == [None, None, "no_answer", "format", "format"]
    sample = rows[1].sample
    assert sample.turns[0].text == "<image>\nIs there a cat?\nAnswer the question using a single word or phrase."
    assert sample.turns[1].text == "no"
    assert sample.extra == {"question_id": 2, "label": "no"}
    assert sample.images[0].name == "COCO_val2014_1.jpg"
