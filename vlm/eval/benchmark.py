"""A benchmark's own files, read through the readers of stage 02 without being sharded first."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from vlm.config import SourceConfig
from vlm.data.images import Damaged, Image
from vlm.data.index import Stored
from vlm.data.pictures import inspect
from vlm.data.samples import IMAGE, Reject, Sample
from vlm.data.sources import read
from vlm.errors import Unusable

MAX_PIXELS = 178_956_970  # of one picture: a larger one is refused before it is decoded
STORED_AS_IT_IS = (b"\xff\xd8", b"\x89PNG", b"RIFF")  # JPEG, PNG, WebP


class Benchmark:
    """The samples of one or several sources in their order; pictures are read when they are asked for.

    With several sources the category of a sample without one is its source's name, and its question_id begins with
    it, because the files of one benchmark count their questions each from the beginning.
    """

    def __init__(self, label: str, sources: Sequence[SourceConfig], seed: int) -> None:
        """Read the questions, and look whether every picture is there.

        Raises Unusable if a file or a picture is missing, or a record is no question: a benchmark is asked in full.
        """
        self.label = label
        self.paths = [source.path for source in sources]
        self.samples: list[Sample] = []
        self.names: list[tuple[str, ...]] = []
        for source in sources:
            for row in read(source, seed):
                if isinstance(row.sample, Reject):
                    raise Unusable(f"{label}: {source.path}, record {row.id} cannot be asked: {row.sample}")
                placed = sum(turn.text.count(IMAGE) for turn in row.sample.turns if turn.role == "user")
                if placed != len(row.sample.images):
                    raise Unusable(
                        f"{label}: {source.path}, record {row.id} has {placed} {IMAGE} for "
                        f"{len(row.sample.images)} pictures"
                    )
                sample = row.sample if len(sources) == 1 else _marked(row.sample, source.label)
                self.samples.append(sample)
                self.names.append(tuple(self._named(image) for image in sample.images))

    def __len__(self) -> int:
        return len(self.samples)

    def __str__(self) -> str:
        return ", ".join(self.paths)

    def read(self, number: int) -> Stored:
        """Return a sample with its pictures as JPEG, PNG or WebP.

        Raises Unusable if a picture cannot be read.
        """
        sample = self.samples[number]
        return Stored(replace(sample, images=()), tuple(self._bytes(image) for image in sample.images))

    def outline(self, number: int) -> tuple[Sample, tuple[str, ...]]:
        """Return a sample and the names of its pictures, whose bytes are not read."""
        return self.samples[number], self.names[number]

    def _named(self, image: Image) -> str:
        """Return 16 hex digits over a picture's name and size: its bytes are read when it is shown."""
        try:
            return hashlib.sha256(f"{image.name}:{image.size()}".encode()).hexdigest()[:16]
        except (OSError, ValueError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise Unusable(f"{self.label}: the picture {image} cannot be read: {reason}") from None

    def _bytes(self, image: Image) -> bytes:
        try:
            data = image.read()
            return data if data.startswith(STORED_AS_IT_IS) else inspect(data, MAX_PIXELS).data
        except (OSError, ValueError, Damaged) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise Unusable(f"{self.label}: the picture {image} cannot be read: {reason}") from None
        except Reject as reason:
            raise Unusable(f"{self.label}: the picture {image} cannot be shown: {reason.detail}") from None


def _marked(sample: Sample, name: str) -> Sample:
    extra = dict(sample.extra)
    extra["question_id"] = f"{name}/{extra.get('question_id', sample.id)}"
    extra.setdefault("category", name)
    return replace(sample, extra=extra)
