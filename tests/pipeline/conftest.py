"""SLURM's commands as a small program, for what is tested without SLURM; tests/slurm/ has the real one."""

import json
import os
from pathlib import Path

import pytest

ANSWERS = """\
#!/usr/bin/env python3
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.path.dirname(sys.argv[0]) + "/answers.json") as file:
    code, out, err = json.load(file).get(name, [0, "", ""])
print(out, end="")
print(err, end="", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that sets what each of SLURM's commands answers: status, stdout, stderr."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "sacct", "scontrol"):
        (folder / name).write_text(ANSWERS)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def answer(**by_command: list) -> None:
        (folder / "answers.json").write_text(json.dumps(by_command))

    answer()
    return answer
