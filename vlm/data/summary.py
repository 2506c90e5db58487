"""What came of a split, from what its shards' sidecars say: its index, its manifest, its table."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm.data.checks import Checks
from vlm.data.duplicates import is_repeated
from vlm.data.index import ROW, shard_name
from vlm.data.samples import LEFT_OUT

COUNTS = (
    *("read", "samples", "rejected", "left_out", "duplicates", "cut_turns"),
    *("images", "tokens", "targets", "longest", "bytes"),
)
Sidecar = dict[str, Any]


def compact(sidecar: Sidecar) -> Sidecar:
    """Return a sidecar as it came from JSON with its numbers in arrays: a tenth of the memory, for all are held."""
    rows = np.array([tuple(entry) for entry in sidecar["entries"]], ROW)
    return {**sidecar, "entries": rows, "digests": bytes.fromhex("".join(sidecar["digests"]))}


def entries_of(sidecars: Sequence[Sidecar]) -> NDArray[np.void]:
    """Return the rows of the index, in order."""
    return np.concatenate([np.zeros(0, ROW), *(sidecar["entries"] for sidecar in sidecars)])


def rejects_of(sidecars: Sequence[Sidecar], *, left_out: bool) -> list[dict[str, str]]:
    """Return what was left out, or what was rejected, in order."""
    return [one for sidecar in sidecars for one in sidecar["rejects"] if (one["reason"] in LEFT_OUT) is left_out]


def manifest_of(sidecars: Sequence[Sidecar], sources: list[str], checks: Checks) -> dict[str, Any]:
    """Return what shards.json says of a split."""
    rows = entries_of(sidecars)
    rejects, left_out = (rejects_of(sidecars, left_out=value) for value in (False, True))
    repeated = is_repeated(b"".join(sidecar["digests"] for sidecar in sidecars))
    dropped = sum(one["reason"] == "duplicate" for one in left_out)
    shards = [
        {"name": shard_name(i), "samples": len(sidecar["entries"]), "sha256": sidecar["sha256"]}
        for i, sidecar in enumerate(sidecars)
    ]
    return {
        "samples": len(rows),
        "read": sum(sum(sidecar["read"].values()) for sidecar in sidecars),
        "rejected": len(rejects),
        "left_out": len(left_out),
        "reasons": _counted(rejects),
        "reasons_left_out": _counted(left_out),
        "duplicates": int(repeated.sum()) + dropped,
        "cut_turns": sum(sidecar["cut_turns"] for sidecar in sidecars),
        **_sums(rows),
        "longest": int(rows["tokens"].max(initial=0)),
        "form": checks.form.value,
        "image_tokens": checks.chat.image_tokens,
        "max_tokens": checks.max_tokens,
        "sources": sources,
        "by_source": _by_source(sidecars, rows, sources),
        "fingerprint": hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
        "shards": shards,
    }


def table(manifests: dict[str, dict[str, Any]]) -> str:
    """Return the counts of every split and its sources as lines of text, with the reasons of what is not in it."""
    lines = []
    for part, manifest in manifests.items():
        lines.append((part, manifest))
        if len(manifest["by_source"]) > 1:
            lines += [(f"  {source}", figures) for source, figures in manifest["by_source"].items()]
    width = max(len(name) for name, _ in lines)
    text = [" ".join([" " * width, *(f"{name:>12}" for name in COUNTS)])]
    for name, figures in lines:
        reasons = figures["reasons"] | figures["reasons_left_out"]
        counts = [f"{figures[key]:>12,}" if key in figures else " " * 12 for key in COUNTS]
        text.append(" ".join([f"{name:{width}}", *counts, ", ".join(f"{k} {v}" for k, v in reasons.items())]).rstrip())
    return "\n".join(text)


def _by_source(sidecars: Sequence[Sidecar], rows: NDArray[np.void], sources: list[str]) -> dict[str, dict[str, Any]]:
    read: Counter[str] = Counter()
    for sidecar in sidecars:
        read.update(sidecar["read"])
    rejects, left_out = (rejects_of(sidecars, left_out=value) for value in (False, True))
    found = {}
    for number, source in enumerate(sources):
        if source not in read:
            continue
        own = rows[rows["source"] == number]
        reasons, unwanted = (
            _counted([one for one in those if one["source"] == source]) for those in (rejects, left_out)
        )
        found[source] = {
            "read": read[source],
            "samples": len(own),
            "rejected": sum(reasons.values()),
            "left_out": sum(unwanted.values()),
            "reasons": reasons,
            "reasons_left_out": unwanted,
            **_sums(own),
        }
    return found


def _sums(rows: NDArray[np.void]) -> dict[str, int]:
    sums = {name: int(rows[name].sum(dtype=np.int64)) for name in ("images", "tokens", "targets")}
    return {**sums, "bytes": int(rows["size"].sum(dtype=np.int64))}


def _counted(rejects: Sequence[dict[str, str]]) -> dict[str, int]:
    return dict(Counter(one["reason"] for one in rejects).most_common())
