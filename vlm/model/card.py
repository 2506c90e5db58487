"""The README.md of an exported folder: what it is, what it was trained on and how, and where it comes from.

It holds no time, place or name of a run, so that the same training writes the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from vlm import ranks
from vlm.config import UNKEYED_NODES, TrainConfig

MEASURED = frozenset({"memory_bytes"})  # of one run on one machine, so not of the training
HEAD = """---
library_name: {library}
pipeline_tag: image-text-to-text
---

# {title}

{use}
"""
WHOLE = """A whole `LlavaForConditionalGeneration`, with its processor:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{folder}")
processor = AutoProcessor.from_pretrained("{folder}")
```"""
ADAPTER = """Low-rank adapters, and the projector that trained beside them, for the model of stage {base} named below:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("BASE"), "{folder}")
```"""


def write_cards(
    out: Path, inputs: Mapping[str, Path], split: str, cfg: TrainConfig, figures: Mapping[str, Any]
) -> None:
    """Write the card of `out`/model, and of `out`/adapter if there is one; on the first rank.

    `inputs` are the artifacts that the stage read, `split` the part of 02_shard it learnt from.
    """
    if not ranks.first():
        return
    settings = OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True)
    recipe = {name: value for name, value in settings.items() if name not in UNKEYED_NODES}
    manifest = json.loads((inputs["02_shard"] / split / "shards.json").read_text())
    sections = {
        "Data": _data(split, manifest),
        "Recipe": "```yaml\n" + yaml.safe_dump(recipe, sort_keys=False).strip() + "\n```",
        "Figures": _table(
            ("figure", "value"), [(name, _show(value)) for name, value in _flat(figures) if name not in MEASURED]
        ),
        "Lineage": _table(("stage", "key"), sorted(lineage(inputs).items())),
    }
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())
    base = next(stage for stage in inputs if stage != "02_shard")
    cards = {"model": ("transformers", WHOLE), "adapter": ("peft", ADAPTER)}
    for folder, (library, use) in cards.items():
        if (out / folder).is_dir():
            title = f"{cfg.strategy.value}, trained on {', '.join(manifest['by_source'])}"
            head = HEAD.format(library=library, title=title, use=use.format(folder=folder, base=base))
            (out / folder / "README.md").write_text(head + body, encoding="utf-8")


def lineage(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Return the keys of the artifacts and of all that they were made of, by stage; as far as they are still there."""
    keys: dict[str, str] = {}
    for stage, path in inputs.items():
        record = json.loads((path / "artifact.json").read_text())
        there = {
            name: path.parent / name for name in record["inputs"] if (path.parent / name / "artifact.json").is_file()
        }
        keys |= {stage: record["key"], **record["inputs"], **lineage(there)}
    return keys


def _data(split: str, manifest: Mapping[str, Any]) -> str:
    columns = ("samples", "tokens", "targets", "rejected")
    rows = [(name, *(_show(of.get(key, "")) for key in columns)) for name, of in manifest["by_source"].items()]
    rows.append((f"**{split}**, as {manifest['form']}", *(_show(manifest.get(key, "")) for key in columns)))
    return _table(("source", *columns), rows) + f"\n\nsha256 of the shards: `{manifest['fingerprint']}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in figures.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return found


def _show(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
