"""An artifact is a folder that is whole or absent.

    runs/<run>/<stage>.partial/   while a stage works, and after it was interrupted
    runs/<run>/<stage>/           when it is whole; artifact.json was written last

Its key is a hash of the settings its stage reads and of the keys of its inputs, so equal keys mean
equal settings all the way up. Nothing is ever overwritten.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.errors import Hindered, Unusable
from vlm.files import sha256, sync, write_whole
from vlm.pipeline.provenance import now, provenance

RECORD = "artifact.json"
CLAIM = "claim.json"
FIGURES = "figures.json"  # headline figures that a stage leaves for the record
BEFORE_WORK = ("config.yaml", "preflight.json")  # what is in a folder before its stage does anything
SCAFFOLD = (CLAIM, FIGURES)  # needed until the record is written, removed afterwards


@dataclass(frozen=True)
class Artifact:
    """A whole artifact, as its record tells it."""

    path: Path
    key: str
    settings: dict[str, Any]
    inputs: dict[str, str]


@dataclass(frozen=True)
class Identity:
    """What makes an artifact what it is: settings by dotted name, and the keys of its inputs by stage."""

    settings: dict[str, Any]
    inputs: dict[str, str]

    @property
    def key(self) -> str:
        """12 hex digits of the sha256 over settings and input keys."""
        canonical = json.dumps({"settings": self.settings, "inputs": self.inputs}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def extends(self, settings: Mapping[str, Any], inputs: Mapping[str, str], may_grow: tuple[str, ...]) -> bool:
        """Say whether another artifact differs from this one, and only in settings named in `may_grow`."""
        changed = {name for name in {*self.settings, *settings} if settings.get(name) != self.settings.get(name)}
        return bool(changed) and changed <= {*may_grow} and inputs == self.inputs

    def difference(self, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        """Say in a few words how another artifact's settings and inputs differ from these."""
        names = sorted({*self.settings, *settings})
        changed = [
            f"{name}={_show(settings.get(name))}, not {_show(self.settings.get(name))}"
            for name in names
            if settings.get(name) != self.settings.get(name)
        ]
        changed += [f"another {stage}" for stage in self.inputs if inputs.get(stage) != self.inputs[stage]]
        return "; ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")


def load(path: Path) -> Artifact:
    """Read the record of a whole artifact.

    Raises Unusable if there is none.
    """
    if not (path / RECORD).is_file():
        raise Unusable(f"{path} is not there")
    record = json.loads((path / RECORD).read_text())
    return Artifact(path, record["key"], record["settings"], record["inputs"])


def figures_of(path: Path) -> dict[str, Any]:
    """Return the headline figures of a whole artifact."""
    return json.loads((path / RECORD).read_text())["figures"]


def require(path: Path, identity: Identity) -> None:
    """Check that the whole artifact at `path` was made with these settings from these inputs.

    Raises Unusable, naming what differs.
    """
    found = load(path)
    if found.key != identity.key:
        differs = identity.difference(found.settings, found.inputs)
        raise Unusable(f"{path} was made with {differs}: choose another run=, or delete it")


def begun(path: Path, identity: Identity, may_grow: tuple[str, ...]) -> str | None:
    """Return when work on this artifact began; None if it did not, or may begin anew.

    Raises Unusable if another artifact was begun in its place, unless only settings named in `may_grow` differ.
    """
    partial = _partial(path)
    if not (partial / CLAIM).is_file():
        return None
    found = json.loads((partial / CLAIM).read_text())
    if Identity(found["settings"], found["inputs"]).key == identity.key:
        return found["started"]
    extends = identity.extends(found["settings"], found["inputs"], may_grow)
    if not extends and any(file.name not in BEFORE_WORK for file in _files(partial)):  # else nothing was done yet
        differs = identity.difference(found["settings"], found["inputs"])
        raise Unusable(f"{partial} was begun with {differs}: choose another run=, or delete it")
    return None


@contextmanager
def publish(
    path: Path, identity: Identity, config: str, *, first: bool, may_grow: tuple[str, ...] = ()
) -> Iterator[Path]:
    """Yield the folder to work in; give it its real name if the body succeeds.

    Re-entering with the same key goes on in the folder that an interrupted run left; with another key it
    raises Unusable, unless only settings named in `may_grow` differ. Every rank may enter, if the body holds a rendezvous and ends with a barrier; only the
    first one claims and publishes. The lock is the kernel's, so it never outlives its process.
    """
    partial = _partial(path)
    partial.mkdir(parents=True, exist_ok=True)
    if not first:
        yield partial
        return
    with _locked(path.parent / f".{path.name}.lock"):
        if path.exists() and may_grow:
            _reopen(path, partial)
        if path.exists():  # another process finished it while this one waited to begin
            raise Hindered(f"{path} was just written by another process: run it again")
        started = _claim(path, identity, may_grow)
        (partial / "config.yaml").write_text(config)
        yield partial
        _write_record(partial, identity, started)
        partial.rename(path)
        sync(path.parent)
        for name in SCAFFOLD:
            (path / name).unlink(missing_ok=True)


@contextmanager
def contribute(path: Path, identity: Identity, share: str) -> Iterator[Path]:
    """Yield the folder to do one share of the work in, beside others who do theirs; nothing is published.

    `share` is I/N. Raises Unusable if the folder was begun with another key, Hindered if another process does the same
    share or works on the whole.
    """
    partial = _partial(path)
    partial.mkdir(parents=True, exist_ok=True)
    number = share.split("/")[0]
    with (
        _locked(path.parent / f".{path.name}.lock", shared=True),
        _locked(path.parent / f".{path.name}.share{number}.lock"),
    ):
        with (path.parent / f".{path.name}.claim.lock").open("w") as claiming:
            fcntl.lockf(claiming, fcntl.LOCK_EX)  # held for a moment, so the others wait
            _claim(path, identity, ())
        yield partial


def write_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Leave headline figures that artifact.json will carry; the first rank's count."""
    if os.environ.get("RANK", "0") == "0":
        (folder / FIGURES).write_text(json.dumps(figures))


@contextmanager
def _locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock of this process alone: unlike flock's, it is not shared by worker processes that outlive a kill.

    Raises Hindered if others hold it; those who share it do not hinder each other.
    """
    with path.open("a+") as handle:
        try:
            fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            raise Hindered(f"another process is working on {path.name.strip('.').removesuffix('.lock')}") from None
        yield
        if not shared:
            path.unlink(missing_ok=True)


def _reopen(path: Path, partial: Path) -> None:
    """Make a whole artifact a partial one, with the claim it had."""
    found = load(path)
    record = {"settings": found.settings, "inputs": found.inputs, "started": now()}
    write_whole(path / CLAIM, json.dumps(record).encode())
    path.rename(partial)  # in place of the empty folder
    (partial / RECORD).unlink()


def _claim(path: Path, identity: Identity, may_grow: tuple[str, ...]) -> str:
    """Mark an empty partial folder as this identity's, or check the mark; return when the work began."""
    if started := begun(path, identity, may_grow):
        return started
    started = now()
    record = {"settings": identity.settings, "inputs": identity.inputs, "started": started}
    write_whole(_partial(path) / CLAIM, json.dumps(record).encode())
    return started


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write_record(partial: Path, identity: Identity, started: str) -> None:
    figures = partial / FIGURES
    headline = json.loads(figures.read_text()) if figures.is_file() else {}
    record = {
        "key": identity.key,
        "stage": partial.name.removesuffix(".partial"),
        "inputs": identity.inputs,
        "figures": headline,
        **provenance(started),
        "settings": identity.settings,
        "sha256": {str(file.relative_to(partial)): sha256(file) for file in sorted(_files(partial))},
    }
    write_whole(partial / RECORD, json.dumps(record, indent=2).encode())


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and file.name not in (*SCAFFOLD, RECORD))


def _show(value: object) -> str:
    return "null" if value is None else str(value)
