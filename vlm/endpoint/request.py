"""A chat with its settings is a request, known by the hash of what it says."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Request:
    """One call of the endpoint. Equal requests have equal hashes; a second attempt at an answer is another request."""

    messages: Messages
    model: str
    max_tokens: int
    temperature: float | None
    about: Mapping[str, str]  # what the log says of it, such as the picture
    attempt: int

    @property
    def hash(self) -> str:
        """Hex sha256 over all of it."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()
