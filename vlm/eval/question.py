"""A question of a task: what the model is asked, and what it should say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, int]  # a picture of the samples: sample number, and which of the sample's pictures


@dataclass(frozen=True)
class Question:
    """What the model is asked, and what it should say."""

    id: str
    category: str
    text: str  # the last user turn, without picture placeholders
    reference: str
    sample: int  # number in the split
    prompt: NDArray[np.int32]  # (L,) ids, picture tokens included
    pictures: tuple[str, ...]  # name of each picture, the same for equal ones
    extra: Mapping[str, Any] = field(default_factory=dict)  # what the corpus says besides, such as ten people's answers
    references: tuple[str, ...] = ()  # all that is right or partly right
    blind_prompt: NDArray[np.int32] | None = None  # (L',) the same without its pictures

    @property
    def own(self) -> tuple[Place, ...]:
        """Where its pictures are."""
        return tuple((self.sample, i) for i in range(len(self.pictures)))
