"""Where an artifact comes from: code, packages, machine, command."""

import shlex
import socket
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "webdataset", "numpy", "pillow", "hydra-core")
PROJECT = Path(__file__).resolve().parents[2]


def provenance(started: str) -> dict[str, object]:
    """Return what artifact.json says of the circumstances; `started` is an ISO 8601 time."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": started,
        "ended": now(),
    }


def now() -> str:
    """Return the current time, UTC, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
