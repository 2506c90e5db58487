"""Where models come from: a folder, or an id on the Hugging Face hub, which may end in @revision."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vlm.errors import Unusable

Loaded = TypeVar("Loaded")
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
WEIGHT_FILES = ["model*.safetensors"]  # not consolidated.safetensors, which holds the same once more
PICKLE_FILES = ["pytorch_model*.bin"]


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


def fetch(name: str, what: str, *, weights: bool = False, allow_pickle: bool = False) -> Path:
    """Return the folder of a model, downloaded if `name` is a hub id: the small files, and the weights if asked.

    Raises Unusable if there is no such model or it cannot be reached.
    """
    locate(name, what)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    repository, revision = HUB_ID.fullmatch(name).groups()
    wanted = SMALL_FILES + (WEIGHT_FILES if weights else [])
    settings = {"revision": revision, "allow_patterns": wanted}
    folder = Path(_one_line(lambda: snapshot_download(repository, **settings), name, what))
    if weights and allow_pickle and not list(folder.glob("*.safetensors")):
        settings["allow_patterns"] = SMALL_FILES + PICKLE_FILES
        folder = Path(_one_line(lambda: snapshot_download(repository, **settings), name, what))
    return folder


def revision_of(folder: Path) -> str | None:
    """Return the commit of a downloaded model; None of a folder that is the user's own."""
    return folder.name if folder.parent.name == "snapshots" else None


def read_config(folder: Path, name: str, what: str) -> Any:  # noqa: ANN401 - a transformers config
    """Load the config of a model folder.

    Raises Unusable if transformers does not know the kind of model, so that only its own code could run it.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    try:
        raw = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise Unusable(f"{what}: {name} holds no config.json that can be read, so it is no model") from None
    kind = raw.get("model_type")
    if kind == "qwen":
        raise Unusable(
            "this is a Qwen v1 checkpoint with code of its own: convert it first with  "
            "python -m vlm.model.qwen_v1 SRC OUT"
        )
    if kind not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise Unusable(f"{what}: {name} needs code of its own repository, which is never run: take another model")
        raise Unusable(f"{what}: {name} is of the kind {kind}, which this version of transformers does not know")
    return load(AutoConfig.from_pretrained, str(folder), what)


def load(loader: Callable[..., Loaded], name: str, what: str, settings: dict[str, Any] | None = None) -> Loaded:
    """Call a transformers `from_pretrained`, never running code of the repository.

    Raises Unusable with the library's own first line if it cannot be loaded.
    """
    return _one_line(lambda: loader(name, trust_remote_code=False, **(settings or {})), name, what)


def _one_line(call: Callable[[], Loaded], name: str, what: str) -> Loaded:
    try:
        return call()
    except Exception as problem:  # transformers, safetensors and hub raise many kinds; each is the user's to mend
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise Unusable(f"{what}: {name} cannot be loaded: {reason}") from None


def is_hub_id(name: str) -> bool:
    """Say whether a name is no folder here and could be an id on the hub."""
    return not Path(name).exists() and HUB_ID.fullmatch(name) is not None
