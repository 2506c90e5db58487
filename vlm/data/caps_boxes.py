"""LLaVA's captions and boxes, a picture a line; each caption is a sample of its own.

{"id", "image": name, "captions": [text], "instances": [{"category", "bbox": [x1, y1, x2, y2] in 0..1}]}
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.config import SourceConfig
from vlm.data.coco import PROMPT
from vlm.data.llava import identified
from vlm.data.records import json_records
from vlm.data.samples import Reject, Row, Sample, asked, caption_prompt, images_of, rows_of, text_of


def caps_boxes(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the captions of a JSON lines file in its order."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        boxes = record.get("instances", [])
        if not isinstance(boxes, list) or not all(map(_is_box, boxes)):
            raise Reject("format", "'instances' is no list of a category and four numbers in 0..1 each")
        turns = asked(caption_prompt(source, seed, identity, PROMPT), text_of(record, "caption"))
        extra = {"image_id": record.get("id"), "boxes": boxes}
        return Sample(identity, source.label, turns, (image(text_of(record, "image")),), extra)

    return rows_of(source.label, _captions(identified(json_records(Path(source.path)))), make)


def _captions(records: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for identity, record in records:
        captions = record.get("captions") if isinstance(record, dict) else None
        if not isinstance(captions, list):
            yield identity, record  # rejected for its caption that is not there
            continue
        for number, caption in enumerate(captions):
            yield f"{identity}_{number}", {**record, "caption": caption}


def _is_box(box: object) -> bool:
    if not isinstance(box, dict) or not isinstance(box.get("category"), str):
        return False
    corners = box.get("bbox")
    return (
        isinstance(corners, list)
        and len(corners) == 4
        and all(isinstance(value, int | float) and 0 <= value <= 1 for value in corners)
    )
