"""Corpora on disk become samples. A reader is one function `settings → iterator of rows`; a new format is one more
file and one line in READERS.
"""

import importlib.util
import itertools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vlm.config import SourceConfig, SourceFormat
from vlm.data.ai_challenger import ai_challenger
from vlm.data.benchmarks import gqa, mme, questions, textvqa, vizwiz
from vlm.data.caps_boxes import caps_boxes
from vlm.data.coco import coco_captions
from vlm.data.llava import llava
from vlm.data.parquet import parquet
from vlm.data.pope import pope
from vlm.data.samples import Row, Sample, Turn, draw
from vlm.data.scienceqa import scienceqa
from vlm.data.tars import tars
from vlm.data.vqa import aokvqa, vqa
from vlm.errors import Unusable

READERS: dict[SourceFormat, Callable[[SourceConfig, int], Iterator[Row]]] = {
    SourceFormat.llava: llava,
    SourceFormat.coco_captions: coco_captions,
    SourceFormat.caps_boxes: caps_boxes,
    SourceFormat.vqa: vqa,
    SourceFormat.aokvqa: aokvqa,
    SourceFormat.scienceqa: scienceqa,
    SourceFormat.pope: pope,
    SourceFormat.ai_challenger: ai_challenger,
    SourceFormat.textvqa: textvqa,
    SourceFormat.vizwiz: vizwiz,
    SourceFormat.gqa: gqa,
    SourceFormat.mme: mme,
    SourceFormat.questions: questions,
    SourceFormat.tars: tars,
    SourceFormat.parquet: parquet,
}
FOLDERS = {SourceFormat.tars: "*.tar", SourceFormat.parquet: "*.parquet"}  # formats whose path may be a folder
TAKES_ANNOTATIONS = {SourceFormat.vqa, SourceFormat.scienceqa, SourceFormat.coco_captions}
CAPTIONS = {SourceFormat.coco_captions, SourceFormat.caps_boxes, SourceFormat.ai_challenger, SourceFormat.tars}
HAS_NO_PLACE_FOR_IMAGES = {SourceFormat.tars, SourceFormat.parquet}  # they are inside its files
MAY_BE_TEXT_ONLY = {SourceFormat.llava, SourceFormat.scienceqa, SourceFormat.questions} | HAS_NO_PLACE_FOR_IMAGES


def check(source: SourceConfig) -> None:
    """Check that a corpus is there and its settings fit its format, without reading it.

    Raises Unusable if a file or a folder is missing or a setting is.
    """
    named = f"data source {source.label}"
    hint = ": run  python -m vlm.demo  first, or choose data=" if source.path.startswith("demo/") else ""
    _check_path(source, named, hint)
    if source.images is not None:
        _check_images(Path(source.images), named, hint)
    elif source.format not in MAY_BE_TEXT_ONLY:
        raise Unusable(f"{named}: format {source.format.value} needs images=, a folder or a .zip")
    if source.annotations is not None:
        if source.format not in TAKES_ANNOTATIONS:
            raise Unusable(f"{named}: format {source.format.value} takes no annotations=")
        if not Path(source.annotations).is_file():
            raise Unusable(f"{named}: the annotations {source.annotations} are not there")
    elif source.format is SourceFormat.vqa:
        raise Unusable(f"{named}: format vqa needs annotations=, the file with the answers")
    if source.prompts is not None and source.format not in CAPTIONS:
        raise Unusable(f"{named}: format {source.format.value} has no captions that prompts= could ask for")
    if source.format is SourceFormat.scienceqa and (source.split is None) is not (source.annotations is None):
        raise Unusable(f"{named}: split= and annotations= (pid_splits.json) are given together or not at all")
    if source.format is SourceFormat.parquet and importlib.util.find_spec("pyarrow") is None:
        raise Unusable(f"{named}: format parquet needs pyarrow: run  pip install -e '.[parquet]'")


def read(source: SourceConfig, seed: int = 0) -> Iterator[Row]:
    """Yield the rows of a corpus in the order of its file, in constant memory.

    `fraction` of the first `limit` rows are chosen by the seed and their place, and read `repeat` times.
    Raises Unusable if something is missing or unreadable.
    """
    check(source)
    for copy in range(source.repeat):
        try:
            rows = itertools.islice(READERS[source.format](source, seed), source.limit)
            for number, row in enumerate(rows):
                if source.fraction == 1 or draw(seed, f"{source.label}/{number}") < source.fraction * 2**64:
                    row = _with_system(row, source.system)
                    yield replace(row, copy=copy) if copy else row
        except (OSError, zipfile.BadZipFile) as problem:
            raise Unusable(f"data source {source.label} cannot be read: {problem}") from None


def _with_system(row: Row, system: str | None) -> Row:
    """Return the row with a system turn before its conversation, unless that has one."""
    if system is None or not isinstance(row.sample, Sample) or not row.sample.turns:
        return row
    if row.sample.turns[0].role == "system":
        return row
    return replace(row, sample=replace(row.sample, turns=(Turn("system", system), *row.sample.turns)))


def _check_path(source: SourceConfig, named: str, hint: str) -> None:
    path = Path(source.path)
    pattern = FOLDERS.get(source.format)
    if pattern and path.is_dir():
        if not any(path.glob(pattern)):
            raise Unusable(f"{named}: the folder {path} holds no {pattern}")
    elif not path.is_file():
        raise Unusable(f"{named}: {path} is not there{hint}")


def _check_images(images: Path, named: str, hint: str) -> None:
    if images.is_file():
        if not zipfile.is_zipfile(images):
            raise Unusable(f"{named}: {images} is neither a folder nor a readable zip archive")
    elif not images.is_dir():
        raise Unusable(f"{named}: the picture folder {images} is not there{hint}")
