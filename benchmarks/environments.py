"""Virtual environments of the peers, made on first use: never in ours, and without a second torch.

An environment sees our packages behind its own: whatever it pins differently shadows ours, and torch is shared. They
lie in $XDG_CACHE_HOME/vlm-benchmarks (by default ~/.cache); deleting that folder is safe.
"""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

PINS = Path(__file__).parent / "peers"
NAMES = tuple(sorted(path.stem for path in PINS.glob("*.txt")))
COMPLETE = "complete"  # a file that is written last


class Missing(Exception):
    """A peer's environment cannot be made; the message says why, in a line."""


def python_of(peer: str) -> str:
    """Return the interpreter of a peer's environment, which is made if need be.

    Raises: Missing, with the line of pip or the import that says why.
    """
    pins = PINS / f"{peer}.txt"
    torch = version("torch").split("+")[0]
    made_of = f"{pins.read_text()}{torch} {sys.version} {sysconfig.get_path('purelib')}"
    folder = cache() / f"{peer}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    python = folder / "bin/python"
    if not (folder / COMPLETE).exists():
        print(f"making an environment for {peer} (once)", flush=True)
        _make(folder, python, pins, torch)
        (folder / COMPLETE).touch()
    return str(python)


def cache() -> Path:
    """Return the folder of all environments."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm-benchmarks"


def _make(folder: Path, python: Path, pins: Path, torch: str) -> None:
    venv.create(folder, with_pip=True, clear=True)
    ours = sysconfig.get_path("purelib")
    own = subprocess.run([python, "-c", "import sysconfig as s; print(s.get_path('purelib'))"], **_QUIET).stdout.strip()
    Path(own, "project.pth").write_text(f"{ours}\n")  # read after its own: what lies in both is its own
    limits = folder / "constraints.txt"
    limits.write_text(f"torch=={torch}\n")
    patience = ["--retries", "1", "--timeout", "60", "--disable-pip-version-check", "--no-input"]
    command = [python, "-m", "pip", "install", *patience, "-c", limits, "-r", pins]
    done = subprocess.run(command, **_QUIET)
    (folder / "pip.log").write_text(done.stdout)
    if done.returncode:
        errors = re.findall(r"^ERROR: (.*)", done.stdout, re.M) or done.stdout.splitlines()[-1:]
        raise Missing(f"pip: {errors[-1]} (all of it in {folder / 'pip.log'})")
    if list(Path(own).glob("torch-*.dist-info")):
        raise Missing("it brings another torch")
    for beside in ("torchvision", "torchaudio"):  # on a CPU, PyPI's builds are for another torch and break at import
        if beside not in pins.read_text() and subprocess.run([python, "-c", f"import {beside}"], **_QUIET).returncode:
            subprocess.run([python, "-m", "pip", "uninstall", "-qy", beside], **_QUIET)


_QUIET: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        try:
            print(f"{name}: {python_of(name)}", flush=True)
        except Missing as reason:
            print(f"{name}: not installed: {reason}", flush=True)
