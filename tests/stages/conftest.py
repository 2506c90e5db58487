"""The stage scripts, run as a user runs them, on the tiny parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..forked import Forked, Process

ROOT = Path(__file__).parents[2]
VARIES = ("config.yaml", "report.html", "events.out", "preflight.json")  # hold the name of the run, or times
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("0[0-5]_*.py"))


# Trainings in this process leave a launcher's variables behind; a stage must not take itself for a rank of them.
ALONE = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}


class Pipeline:
    """Runs stages in a folder of runs, with the same overrides."""

    def __init__(self, runs: Path, overrides: list[str], forked: Forked) -> None:
        self.runs = runs
        self.forked = forked
        self.overrides = overrides

    def command(self, stage: str, *more: str, run: str = "r", ranks: int = 1) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        script = [*launcher, f"stages/{stage}.py", f"runs={self.runs}", f"run={run}"]
        return [sys.executable, *script, *self.overrides, *more]

    def start(self, stage: str, *more: str, run: str = "r", ranks: int = 1) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(stage, *more, run=run, ranks=ranks),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ALONE | {"OMP_NUM_THREADS": "1"},
        )

    def fork(self, stage: str, *more: str, run: str) -> Process:
        """Start a stage that has everything imported."""
        return self.forked.start(self.command(stage, *more, run=run)[1:])

    def run(self, stage: str, *more: str, run: str = "r", ranks: int = 1) -> tuple[int, str]:
        process = self.start(stage, *more, run=run, ranks=ranks)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output


def contents(artifact: Path) -> dict[str, str]:
    """Return the hashes of an artifact's files that must be equal whenever and however it was made."""
    record = json.loads((artifact / "artifact.json").read_text())
    kept = {name: digest for name, digest in record["sha256"].items() if not any(part in name for part in VARIES)}
    metrics = artifact / "metrics.jsonl"
    if metrics.is_file():
        lines = map(json.loads, metrics.open())
        kept["metrics.jsonl"] = str([(line["step"], line.get("loss"), line.get("held_out/loss")) for line in lines])
    return kept


@pytest.fixture(scope="session")
def pipeline(tiny_settings: list[str], forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("runs"), tiny_settings, forked)


@pytest.fixture(scope="session")
def whole_run(pipeline: Pipeline) -> Path:
    """runs/r after all stages."""
    for stage in STAGES:
        code, output = pipeline.run(stage)
        assert code == 0, output
    return pipeline.runs / "r"
