"""The plan of a training, from its settings."""

from typing import Any

from vlm.config import TrainConfig
from vlm.data.index import Split
from vlm.data.plan import Plan, make_plan


def plan_of(cfg: TrainConfig, seed: int, shards: Split) -> Plan:
    """Return the plan of a training on a split.

    Raises Unusable if a sample does not fit into a pack.
    """
    return make_plan(shards.rows, seed, **planning(cfg))


def planning(cfg: TrainConfig) -> dict[str, Any]:
    """Return the settings that a plan follows from, beside index and seed."""
    return {
        "epochs": cfg.epochs,
        "steps": cfg.steps,
        "samples_per_step": cfg.samples_per_step,
        "pack_tokens": cfg.pack_tokens,
        "pack_images": cfg.pack_images,
        "packing": cfg.packing,
        "shards_at_once": cfg.shards_at_once,
    }
