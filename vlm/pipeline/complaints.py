"""What Hydra and OmegaConf say of settings that cannot be composed, in one sentence for the user."""

import difflib
import re
from collections.abc import Iterator

from omegaconf import OmegaConf

from vlm.config import ClusterConfig, RootConfig


def plainly(problem: Exception) -> str:
    """Return the sentence that matters of a Hydra or OmegaConf error, with the nearest name where one is wrong."""
    text = str(problem)
    if wrong := re.search(r"Could not override '([^']+)'.*|Key '([^']+)' is? ?not in '(\w+)'", text):
        name = wrong[1] or wrong[2]
        if name == "cluster":
            return "a cluster is chosen with a plus: +cluster=NAME"
        if inner := re.search(r"Key '(\w+)' not in '(?!dict)\w+'", str(problem.__cause__)):
            name = name if name.endswith(inner[1]) else f"{name}.{inner[1]}"  # a key of a list's element
        near = difflib.get_close_matches(name, _names(), n=1)
        return f"there is no setting {name}" + (f": did you mean {near[0]}?" if near else "; --help lists them")
    if wrong := re.search(
        r"Could not find '([^']+)'\s+Available options in '[^']+':([^:]*?)(Config search|$)", text, re.S
    ):
        return f"there is no conf/{wrong[1]}.yaml: choose one of {', '.join(wrong[2].split())}"
    reason = str(problem.__cause__).splitlines()[0] if problem.__cause__ else ""
    first = " ".join(line.strip() for line in text.splitlines()[:3] if line.strip())
    return first if reason in first else f"{first}: {reason}"


def _names() -> list[str]:
    defaults = OmegaConf.structured(RootConfig(cluster=ClusterConfig()))
    return list(_flat("", OmegaConf.to_container(defaults, enum_to_str=True)))


def _flat(name: str, value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    else:
        yield name
