"""Corpora on disk become samples. A reader is one function `settings → iterator of rows`; a new format is one more
file and one line in FORMATS, whose name there is then a source's `format:`.
"""

import importlib.util
import itertools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vlm.config import SourceConfig
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
from vlm.errors import Unusable, unknown


@dataclass(frozen=True)
class Format:
    """A layout of a corpus on disk: its reader, and which settings of a source mean something to it."""

    rows: Callable[[SourceConfig, int], Iterator[Row]]
    packed: str | None = None  # pattern of its files, where these hold the pictures too; `path` may be their folder
    text_only: bool = False  # may be a corpus without pictures
    captions: bool = False  # has captions, which `prompts` can ask for
    annotations: bool = False  # takes a second file


FORMATS = {
    "llava": Format(llava, text_only=True),
    "coco_captions": Format(coco_captions, captions=True, annotations=True),
    "caps_boxes": Format(caps_boxes, captions=True),
    "vqa": Format(vqa, annotations=True),
    "aokvqa": Format(aokvqa),
    "scienceqa": Format(scienceqa, text_only=True, annotations=True),
    "pope": Format(pope),
    "ai_challenger": Format(ai_challenger, captions=True),
    "textvqa": Format(textvqa),
    "vizwiz": Format(vizwiz),
    "gqa": Format(gqa),
    "mme": Format(mme),
    "questions": Format(questions, text_only=True),
    "tars": Format(tars, packed="*.tar", captions=True),
    "parquet": Format(parquet, packed="*.parquet"),
}


def format_of(source: SourceConfig) -> Format:
    """Return the format of a corpus.

    Raises Unusable if there is none of that name.
    """
    if source.format not in FORMATS:
        raise unknown(f"data source {source.label}", "format", source.format, FORMATS)
    return FORMATS[source.format]


def check(source: SourceConfig) -> None:
    """Check that a corpus is there and its settings fit its format, without reading it.

    Raises Unusable if a file or a folder is missing or a setting is.
    """
    named = f"data source {source.label}"
    layout = format_of(source)
    hint = ": run  python -m vlm.demo  first, or choose data=" if source.path.startswith("demo/") else ""
    _check_path(Path(source.path), layout, named, hint)
    if source.images is not None:
        _check_images(Path(source.images), named, hint)
    elif not layout.text_only and not layout.packed:
        raise Unusable(f"{named}: format {source.format} needs images=, a folder or a .zip")
    if source.annotations is not None:
        if not layout.annotations:
            raise Unusable(f"{named}: format {source.format} takes no annotations=")
        if not Path(source.annotations).is_file():
            raise Unusable(f"{named}: the annotations {source.annotations} are not there")
    elif source.format == "vqa":
        raise Unusable(f"{named}: format vqa needs annotations=, the file with the answers")
    if source.prompts is not None and not layout.captions:
        raise Unusable(f"{named}: format {source.format} has no captions that prompts= could ask for")
    if source.format == "scienceqa" and (source.split is None) is not (source.annotations is None):
        raise Unusable(f"{named}: split= and annotations= (pid_splits.json) are given together or not at all")
    if source.format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise Unusable(f"{named}: format parquet needs pyarrow: run  pip install -e '.[parquet]'")


def read(source: SourceConfig, seed: int = 0) -> Iterator[Row]:
    """Yield the rows of a corpus in the order of its file, in constant memory.

    `fraction` of the first `limit` rows are chosen by the seed and their place, and read `repeat` times.
    Raises Unusable if something is missing or unreadable.
    """
    check(source)
    for copy in range(source.repeat):
        try:
            rows = itertools.islice(FORMATS[source.format].rows(source, seed), source.limit)
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


def _check_path(path: Path, layout: Format, named: str, hint: str) -> None:
    if layout.packed and path.is_dir():
        if not any(path.glob(layout.packed)):
            raise Unusable(f"{named}: the folder {path} holds no {layout.packed}")
    elif not path.is_file():
        raise Unusable(f"{named}: {path} is not there{hint}")


def _check_images(images: Path, named: str, hint: str) -> None:
    if images.is_file():
        if not zipfile.is_zipfile(images):
            raise Unusable(f"{named}: {images} is neither a folder nor a readable zip archive")
    elif not images.is_dir():
        raise Unusable(f"{named}: the picture folder {images} is not there{hint}")
