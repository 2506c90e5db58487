"""What is known of a picture: the captions of a source of stage 02, and its boxes where it has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm.config import SourceConfig
from vlm.data.images import Image
from vlm.data.samples import Reject, Sample
from vlm.data.sources import check, format_of, read
from vlm.errors import Unusable


@dataclass
class Facts:
    """One picture; what the text model sees instead of it."""

    source: str
    image: Image
    image_id: Any  # the corpus's own number or name of it
    captions: list[str]
    boxes: list[str]  # "dog: [0.12, 0.3, 0.5, 0.9]": x1, y1, x2, y2 in 0..1, three decimals


def facts_of(source: SourceConfig, seed: int, limit: int | None = None) -> tuple[list[Facts], int]:
    """Return what is known of the first `limit` pictures, in the order of their first captions; and the rows without use.

    A row is of use if it shows one picture and its last turn is a caption. Memory grows with the pictures.
    Raises Unusable if the corpus is missing or broken, or its pictures cannot be named from outside.
    """
    if format_of(source).packed:
        raise Unusable(
            f"data source {source.label}: the pictures of format {source.format} are inside its files, where "
            "LLaVA JSON cannot name them: unpack them"
        )
    check(source)
    known: dict[str, Facts] = {}
    useless = 0
    for row in read(source, seed):
        sample = row.sample
        if isinstance(sample, Reject) or len(sample.images) != 1 or sample.turns[-1].role != "assistant":
            useless += 1
            continue
        image = sample.images[0]
        if image.name not in known:
            known[image.name] = Facts(row.source, image, sample.extra.get("image_id", image.name), [], _boxes(sample))
        caption = " ".join(sample.turns[-1].text.split())
        if caption and caption not in known[image.name].captions:
            known[image.name].captions.append(caption)
    found = [facts for facts in known.values() if facts.captions]
    return found[:limit], useless


def _boxes(sample: Sample) -> list[str]:
    boxes: Sequence[Any] = sample.extra.get("boxes", ())
    return [box_line(box["category"], box["bbox"]) for box in boxes]


def box_line(category: str, corners: Sequence[float]) -> str:
    """Return a box as the text model reads it."""
    return f"{category}: {[round(value, 3) for value in corners]}"
