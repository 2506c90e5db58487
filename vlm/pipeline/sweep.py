"""Sweeps (`python stages/04_finetune.py -m finetune.lr.lora=1e-4,2e-4`): a run for each choice of the swept settings.

    runs/<run>/04_finetune                                the run that the sweep varies
    runs/<run>/sweep/finetune.lr.lora=0.0001/04_finetune  one of the sweep

What is equal is shared: an artifact of the same key, in the run or elsewhere in its sweep, becomes a link, and so do
the run's earlier stages as far as they were made with this choice. So only what differs is done again.
"""

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from vlm.pipeline import artifact

FOLDER = "sweep"
LONGEST = 160  # characters of a folder's name
NO_RESULT = ("memory_bytes", "export_gate")  # figures of the process and its arithmetic, not of the model


def choice_of_job() -> str | None:
    """Return the swept settings of this job as a folder name; None outside a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    given = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(given)
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    of_job = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    return name_of([override.input_line for override in of_job if override.key_or_group in swept])


def name_of(overrides: Sequence[str]) -> str | None:
    """Return a folder name for overrides, whatever their order; None if there are none."""
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(sorted(overrides)))
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name or None


def adopt(base: Path, own: Path, stage: str, settings: Mapping[str, Any]) -> None:
    """Link the artifacts of the run `base` that come before `stage` into `own`, where they are as if made there.

    That is, where `settings` (all of them, by dotted name) and the keys of the inputs are those they were made with.
    """
    for record in sorted(base.glob(f"[0-9]*/{artifact.RECORD}")):
        found, path = artifact.load(record.parent), own / record.parent.name
        if path.name >= stage or path.exists():
            continue
        fits = all(settings.get(name) == value for name, value in found.settings.items())
        if fits and all(_key(own / name) == key for name, key in found.inputs.items()):
            _link(record.parent, path)


def share(base: Path, out: Path, key: str) -> None:
    """Make `out` a link to an artifact of the same stage with the same key, if the run or its sweep has one."""
    for path in (base / out.name, *sorted((base / FOLDER).glob(f"*/{out.name}"))):
        if not out.exists() and _key(path) == key:
            _link(path, out)


def table(jobs: Sequence[Path]) -> str:
    """Return the results of artifacts, one for each job, as lines of text: those that differ between them."""
    figures = [_flat(artifact.figures_of(path)) for path in jobs]
    names = [
        name
        for name in dict.fromkeys(name for one in figures for name in one)
        if name.partition(".")[0] not in NO_RESULT and len({f.get(name) for f in figures}) > 1
    ]
    rows = [["", *names]]
    rows += [
        [path.parent.name, *(_shown(one.get(name)) for name in names)] for path, one in zip(jobs, figures, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def _key(path: Path) -> str | None:
    return artifact.load(path).key if (path / artifact.RECORD).is_file() else None


def _link(target: Path, path: Path) -> None:
    """Link to a folder, unless another rank just did; a link that leads nowhere is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and not path.exists():
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileExistsError):
        path.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()))


def _flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the single values among figures, by dotted name."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            found[prefix + name] = value
    return found


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
