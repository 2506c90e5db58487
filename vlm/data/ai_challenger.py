"""AI Challenger's Chinese captions: [{"url", "image_id": "8f00….jpg", "caption": [five texts]}].

Each caption is a sample of its own, named PICTURE#0 to PICTURE#4, or one of them is chosen by the seed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.config import Captions, SourceConfig
from vlm.data.coco import PROMPT
from vlm.data.records import json_records
from vlm.data.samples import Reject, Row, Sample, asked, caption_prompt, draw, images_of, rows_of, text_of, texts_of


def ai_challenger(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the captions of a file, a picture's captions one after the other."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        if record["fault"]:
            raise record["fault"]
        turns = asked(caption_prompt(source, seed, identity, PROMPT), record["text"])
        return Sample(identity, source.label, turns, (image(record["image"]),), {"image_id": record["image"]})

    return rows_of(source.label, _captions(source, seed), make)


def _captions(source: SourceConfig, seed: int) -> Iterator[tuple[str, Any]]:
    for number, record in enumerate(json_records(Path(source.path))):
        if not isinstance(record, dict):
            yield f"row{number}", record
            continue
        try:
            name, captions = text_of(record, "image_id"), texts_of(record, "caption")
        except Reject as fault:
            yield f"row{number}", {"fault": fault}
            continue
        kept = list(range(len(captions)))
        if source.captions is Captions.one:
            kept = [min(kept, key=lambda at, name=name: draw(seed, f"{name}#{at}"))]
        for at in kept:
            yield f"{name}#{at}", {"fault": None, "image": name, "text": captions[at]}
