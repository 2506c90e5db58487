"""ScienceQA: problems.json, {"pid": {"question", "choices", "answer", "hint", "image", "split", …}}.

With pid_splits.json ({"train": [pids], …}) as `annotations`, `split` says which of its lists is read. A picture is
<split>/<pid>/<image> in the folder of pictures; half of the problems have none.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.config import SourceConfig
from vlm.data.records import json_map
from vlm.data.samples import Row, Sample, asked, images_of, rows_of, text_of, texts_of
from vlm.data.vqa import LETTER, letter, listed, with_suffix
from vlm.errors import Unusable

KEPT = ("subject", "topic", "grade", "skill", "hint", "lecture", "solution")


def scienceqa(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the problems in the order of their file; they are answered by a letter."""
    image = images_of(source)
    wanted = _pids(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        question, choices = text_of(record, "question"), texts_of(record, "choices")
        hint, picture = record.get("hint"), record.get("image")
        asks = f"Context: {hint}\n{question}" if hint else question
        right = letter(choices, record.get("answer"))
        images = (image(f"{text_of(record, 'split')}/{identity}/{picture}"),) if picture else ()
        extra = {key: record[key] for key in KEPT if record.get(key)}
        extra |= {"question_id": identity, "choices": choices, "correct_choice_idx": record["answer"], "label": right}
        asks = with_suffix(listed(asks, choices), source.prompt, LETTER)
        return Sample(identity, source.label, asked(asks, right, shows_picture=bool(images)), images, extra)

    problems = json_map(Path(source.path))
    return rows_of(source.label, (one for one in problems if wanted is None or one[0] in wanted), make)


def _pids(source: SourceConfig) -> frozenset[str] | None:
    """Return the problems that are wanted, or None for all.

    Raises Unusable if the list of splits has no such split.
    """
    if source.annotations is None:
        return None
    try:
        splits = json.loads(Path(source.annotations).read_bytes())
    except ValueError as problem:
        raise Unusable(f"{source.annotations} is no JSON: {problem}") from None
    if not isinstance(splits, dict) or not isinstance(splits.get(source.split), list):
        known = ", ".join(splits) if isinstance(splits, dict) else "none"
        raise Unusable(f"{source.annotations} has no split {source.split!r} (its splits: {known}): set split=")
    return frozenset(map(str, splits[source.split]))
