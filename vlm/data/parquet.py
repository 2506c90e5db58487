"""Parquet as the Hub's collections have it (the_cauldron, FineVision).

Columns: `images`, a list of {"bytes", "path"}; `texts`, a list of {"user", "assistant"}. A picture's bytes are read
by the process that checks it; the one that reads the rows takes its text and the number of its pictures.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.config import SourceConfig
from vlm.data.samples import IMAGE, Reject, Row, Sample, Turn, rows_of, text_of
from vlm.data.tars import files_at
from vlm.errors import Unusable

ROWS_AT_ONCE = 64  # that are held in memory with their pictures where only the pictures tell how many they are


@dataclass(frozen=True)
class InParquet:
    """A picture in a row of a parquet file."""

    file: str
    group: int  # row group
    row: int  # in the group
    at: int  # in the row's list

    @property
    def name(self) -> str:
        return f"{Path(self.file).name}/{self.group}/{self.row}/{self.at}"

    def size(self) -> int:
        return 0  # only known once it is read

    def read(self) -> bytes:
        data = _pictures(self.file, self.group)[self.row][self.at]["bytes"].as_py()
        if data is None:
            raise ValueError("no bytes in this row")
        return data

    def __str__(self) -> str:
        return f"{self.file}, row group {self.group}, row {self.row}, picture {self.at}"


def parquet(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the rows of a file, or of all *.parquet of a folder by their names."""

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        texts, images = record["texts"], record["images"]
        if not isinstance(texts, list) or not all(isinstance(one, dict) for one in texts):
            raise Reject("format", "the row has no list of texts")
        turns = [Turn(role, text_of(one, role)) for one in texts for role in ("user", "assistant")]
        if images and turns and not any(IMAGE in turn.text for turn in turns):
            turns[0] = Turn("user", f"{IMAGE}\n" * len(images) + turns[0].text)
        return Sample(identity, source.label, tuple(turns), images)

    return rows_of(source.label, (row for path in files_at(source.path, "parquet") for row in _rows(path)), make)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(str(path)) as file:
        names = file.schema_arrow.names
        if "texts" not in names:
            raise Unusable(f"{path} has no column 'texts' but {', '.join(names)}")
        leaves = {file.schema.column(i).path for i in range(len(file.schema))}
        marker = next((leaf for leaf in leaves if leaf.startswith("images.") and leaf.endswith(".path")), "images")
        columns = ["texts", *([marker] if "images" in names else [])]
        for group in range(file.num_row_groups):
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
                counts = batch.column("images").value_lengths().to_pylist() if "images" in names else [0] * len(batch)
                for texts, count in zip(batch.column("texts").to_pylist(), counts, strict=True):
                    images = tuple(InParquet(str(path), group, number, at) for at in range(count or 0))
                    yield f"{path.stem}/{group}/{number}", {"texts": texts, "images": images}
                    number += 1


@functools.lru_cache(maxsize=2)  # rows are checked in order, a whole group by one process
def _pictures(path: str, group: int) -> Any:  # noqa: ANN401 - pyarrow is optional
    with _opened(path) as file:
        return file.read_row_group(group, columns=["images"]).column("images").combine_chunks()


def _opened(path: str) -> Any:  # noqa: ANN401 - pyarrow is optional
    try:
        import pyarrow.parquet
    except ImportError:
        raise Unusable("format parquet needs pyarrow: run  pip install -e '.[parquet]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as problem:
        raise Unusable(f"{path} is no parquet file: {str(problem).splitlines()[0]}") from None
