"""POPE: JSON lines of {"question_id", "image": file name, "text": question, "label": "yes" | "no"}."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.config import SourceConfig
from vlm.data.records import json_records
from vlm.data.samples import Reject, Row, Sample, asked, images_of, rows_of, text_of
from vlm.data.vqa import SHORT, by_question, with_suffix


def pope(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the questions in the order of their file."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        label = text_of(record, "label")
        if label not in {"yes", "no"}:
            raise Reject("no_answer", f"the label is {label!r}, not yes or no")
        turns = asked(with_suffix(text_of(record, "text"), source.prompt, SHORT), label)
        extra = {key: value for key, value in record.items() if key not in {"image", "text"}}
        return Sample(identity, source.label, turns, (image(text_of(record, "image")),), extra)

    return rows_of(source.label, by_question(json_records(Path(source.path))), make)
