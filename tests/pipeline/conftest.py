"""SLURM's commands as a small program, for what is tested without SLURM (tests/slurm/ has the real one); and figures of
a training as vlm/train/preflight.py gives them, small enough to reckon with.
"""

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vlm.config import HardwareConfig

CONF = str(Path(__file__).parents[2] / "conf")
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
GIB = 2**30
CARD = HardwareConfig(
    name="card", memory_gib=24.0, bfloat16_tflops=100.0, float32_tflops=50.0, price_per_hour=2.0, link_gbytes=100.0, host_gbytes=10.0
)  # fmt: skip
MEMORY = {("zero2", "none"): 15, ("zero2", "full"): 8, ("zero3", "none"): 12, ("zero3", "full"): 5}  # GiB of one row


def choice(zero: str, recompute: str, rows: int, ranks: int = 4) -> dict[str, Any]:
    return {
        "zero": zero, "recompute": recompute, "rows": rows, "ranks": ranks, "padding": 0.2,
        "memory": (MEMORY[zero, recompute] + 5 * (rows - 1)) * GIB, "flops": 4e18 if recompute == "none" else 5e18,
        "sent": 10**11 if zero == "zero3" else 10**10, "host_sent": 0,
    }  # fmt: skip


FOUND = {
    "workload": {
        "steps": 1000, "samples": 8000, "images": 8000, "packs": 4000, "micro_batches": 1, "tokens": 10**6,
        "image_tokens": 5 * 10**5, "targets": 10**5, "padding": 0.2, "squares": 1, "rows": 4, "length": 2048,
    },
    "parameters": {"projector": 10, "language_model": 100},
    "trainable": {"projector": 10},
    "flops": {"language model": 4e18},
    "memory": {"weights": 10 * GIB, "activations": 20 * GIB},
    "host_memory": 0, "strategy": "full", "dtype": "bfloat16", "ranks": 4, "is_gpu": True,
    "zero": "zero2", "recompute": "none", "rows": 4,
    "checkpoint_bytes": 100, "model_bytes": 200, "keep": 2, "save_every": 100, "save_minutes": None,
    "choices": [choice(zero, how, rows) for zero, how in MEMORY for rows in (1, 2, 4)],
    "advice": "more would help",
}  # fmt: skip


@pytest.fixture
def composed(tmp_path: Path):
    """Return a function that composes the settings of the run `r` in this test's folder, with overrides."""

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("config", [f"runs={tmp_path}", "run=r", *overrides])

    return compose_with


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


@pytest.fixture
def found() -> dict[str, Any]:
    return deepcopy(FOUND)


@pytest.fixture
def card() -> HardwareConfig:
    return deepcopy(CARD)
