"""What Hydra composed becomes the typed settings that a stage reads, and the names and values that count in its key."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from vlm.config import RootConfig, counts_in_key
from vlm.errors import Unusable
from vlm.names import check_names


def typed(composed: DictConfig) -> RootConfig:
    """Turn the composed settings into dataclasses; cross-field checks run here.

    Raises Unusable if a setting without a default was not given, or one names a format or a scorer that is not there.
    """
    try:
        cfg = OmegaConf.to_object(composed)
    except MissingMandatoryValue as problem:
        raise Unusable(f"{problem.full_key} has no value: give it, or choose an experiment= that does") from None
    check_names(cfg)
    return cfg


def settings_of(composed: DictConfig, nodes: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings under `nodes` by dotted name, without those that do not change the result."""
    plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    found: dict[str, Any] = {}
    for node in nodes:
        value = plain
        for part in node.split("."):
            value = value[part]
        _flatten(node, value, found)
    return found


def _flatten(name: str, value: object, found: dict[str, Any]) -> None:
    if not counts_in_key(name.rsplit(".", 1)[-1], value):
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(f"{name}.{key}", inner, found)
    else:
        found[name] = value
