#!/usr/bin/env bash
# Lint and test. Arguments go to pytest: launch/test.sh tests/data -k index; launch/test.sh -m ""  adds the slow ones.
# All together they run in several processes, a choice of them in this one unless -n 3 says otherwise.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

ruff check .
ruff format --check .
python -m pytest -rs -n auto -m "not slow" "$@"
