"""COCO's captions: each is a sample of its own, or one of a picture's is chosen by the seed.

{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"id", "image_id", "caption"}]}

The list of images may be missing: image_names then says how a picture is called. With instances_*.json as
`annotations` ({"images", "annotations": [{"image_id", "category_id", "bbox"}], "categories"}) its boxes travel in
`extra`, as LLaVA's instruction data writes them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.config import Captions, SourceConfig
from vlm.data.llava import identified
from vlm.data.records import json_list
from vlm.data.samples import Reject, Row, Sample, asked, caption_prompt, draw, images_of, rows_of, text_of
from vlm.errors import Unusable

PROMPT = "Provide a brief description of the given image."  # LLaVA's


@dataclass
class Known:
    """What the files say of the pictures, by number: memory grows with the pictures, not with the captions."""

    names: dict[Any, str] = field(default_factory=dict)
    sizes: dict[Any, tuple[int, int]] = field(default_factory=dict)  # width and height, pixels
    boxes: dict[Any, list[tuple[str, tuple[float, ...]]]] = field(default_factory=dict)  # x, y, width, height, pixels


def coco_captions(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the captions of a COCO captions file in its order."""
    path = Path(source.path)
    image = images_of(source)
    known = _known(path, source.annotations)
    chosen = _one_of_each(path, seed) if source.captions is Captions.one else None

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        number = number_of(record)
        extra = {"image_id": number}
        if number in known.boxes:
            extra["boxes"] = [_relative(*box, *known.sizes.get(number, (0, 0))) for box in known.boxes[number]]
        name = known.names.get(number) or source.image_names.format(number)
        turns = asked(caption_prompt(source, seed, identity, PROMPT), text_of(record, "caption"))
        return Sample(identity, source.label, turns, (image(name),), extra)

    captions = identified(json_list(path, "annotations"))
    return rows_of(source.label, (one for one in captions if chosen is None or _is_chosen(*one, chosen)), make)


def number_of(record: Mapping[str, Any]) -> int:
    """Return the number of a record's COCO picture.

    Raises Reject if it has none.
    """
    number = record.get("image_id")
    if not isinstance(number, int):
        raise Reject("format", f"the record's image_id is {number!r}, not a number")
    return number


def _known(path: Path, instances: str | None) -> Known:
    known = Known()
    for one in json_list(path, "images", may_be_missing=True):
        if isinstance(one, dict) and isinstance(one.get("file_name"), str):
            known.names[one.get("id")] = one["file_name"]
    if instances:
        try:
            _read_boxes(Path(instances), known)
        except (AttributeError, KeyError, TypeError) as problem:
            raise Unusable(f"{instances} is no file of COCO instances: {problem!r}") from None
    return known


def _read_boxes(path: Path, known: Known) -> None:
    known.sizes = {one["id"]: (one["width"], one["height"]) for one in json_list(path, "images")}
    labels = {one["id"]: one["name"] for one in json_list(path, "categories")}
    for one in json_list(path, "annotations"):
        known.boxes.setdefault(one["image_id"], []).append((labels[one["category_id"]], tuple(one["bbox"])))


def _relative(label: str, box: tuple[float, ...], width: int, height: int) -> dict[str, Any]:
    """Return x1, y1, x2, y2 in 0..1, three decimals."""
    if not width or not height:
        raise Reject("format", "a picture with boxes has no width and height in the list of images")
    x, y, across, down = box
    corners = (x / width, y / height, (x + across) / width, (y + down) / height)
    return {"category": label, "bbox": [round(value, 3) for value in corners]}


def _one_of_each(path: Path, seed: int) -> dict[Any, str]:
    """Return the id of the caption that is chosen for each picture."""
    chosen: dict[Any, tuple[int, str]] = {}
    for identity, record in identified(json_list(path, "annotations")):
        if isinstance(record, dict) and isinstance(record.get("image_id"), int):
            drawn = (draw(seed, identity), identity)
            chosen[record["image_id"]] = min(drawn, chosen.get(record["image_id"], drawn))
    return {number: identity for number, (_, identity) in chosen.items()}


def _is_chosen(identity: str, record: object, chosen: Mapping[Any, str]) -> bool:
    is_good = isinstance(record, dict) and isinstance(record.get("image_id"), int)
    return not is_good or chosen[record["image_id"]] == identity
