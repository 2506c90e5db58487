# shellcheck shell=bash
# Sourced by the other launch scripts: afterwards `python` is one that satisfies requirements.txt.
# The active environment is used if it already does; else .venv is made and filled. Safe to run again, also after an
# interrupted installation. PYTHON=… names the interpreter to make .venv with (3.10 to 3.12).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

satisfied() {  # does this interpreter hold every pinned package, and this checkout?
    command -v "$1" >/dev/null && "$1" - "$root" <<'PYTHON' 2>/dev/null
import re
import sys
from importlib import metadata, util
from pathlib import Path

root = Path(sys.argv[1])
pins = re.findall(r"^([\w-]+)==([\w.]+)", (root / "requirements.txt").read_text(), re.M)
wrong = [name for name, version in pins if metadata.version(name).split("+")[0] != version]
found = util.find_spec("vlm")
sys.exit(bool(wrong) or found is None or Path(found.origin).resolve().parents[1] != root.resolve())
PYTHON
}

suitable() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

if ! satisfied python; then
    if ! { [ -x .venv/bin/python ] && suitable .venv/bin/python; }; then
        for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3 python}; do
            if suitable "$candidate"; then
                chosen=$candidate
                break
            fi
        done
        if [ -z "${chosen:-}" ]; then
            echo "setup: Python 3.10, 3.11 or 3.12 is needed; name it with PYTHON=/path/to/python" >&2
            exit 1
        fi
        rm -rf .venv
        if ! "$chosen" -m venv .venv; then
            echo "setup: $chosen cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2
            exit 1
        fi
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
    if ! satisfied python; then
        echo "setup: installing requirements.txt into .venv (once, a few minutes)"
        if ! python -m pip install --disable-pip-version-check -q -r requirements.txt; then
            echo "setup: the installation failed; its reason stands above, and running this again goes on" >&2
            exit 1
        fi
    fi
fi
