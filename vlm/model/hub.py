"""Where models come from: a folder, or an id on the Hugging Face hub."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vlm.errors import Unusable

Loaded = TypeVar("Loaded")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def locate(name: str, what: str) -> str:
    """Check that `name` is a model folder or could be a hub id, before anything heavy is imported; return it.

    Raises Unusable if it is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise Unusable(f"{what}: {name} holds no config.json, so it is no model folder")
        return name
    if folder.exists():
        raise Unusable(f"{what}: {name} is a file, not a model folder")
    if name.startswith("demo/"):
        raise Unusable(f"{what}: {name} is not there: run  python -m vlm.demo  first, or choose model=")
    if folder.parent.is_dir() and str(folder.parent) != "." or not HUB_ID.fullmatch(name):
        raise Unusable(f"{what}: the folder {name} is not there")
    return name


def load(loader: Callable[..., Loaded], name: str, what: str, settings: dict[str, Any] | None = None) -> Loaded:
    """Call a transformers `from_pretrained`, never running code of the repository.

    Raises Unusable with the library's own first line if it cannot be loaded.
    """
    try:
        return loader(name, trust_remote_code=False, **(settings or {}))
    except Exception as problem:  # transformers, safetensors and hub raise many kinds; each is the user's to mend
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise Unusable(f"{what}: {name} cannot be loaded: {reason}") from None
