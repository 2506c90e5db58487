"""The stage scripts, run as a user runs them, on the tiny parts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("0[0-5]_*.py"))


# Trainings in this process leave a launcher's variables behind; a stage must not take itself for a rank of them.
ALONE = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}


class Pipeline:
    """Runs stages in a folder of runs, with the same overrides."""

    def __init__(self, runs: Path, overrides: list[str]) -> None:
        self.runs = runs
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

    def run(self, stage: str, *more: str, run: str = "r", ranks: int = 1) -> tuple[int, str]:
        process = self.start(stage, *more, run=run, ranks=ranks)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output


@pytest.fixture(scope="session")
def pipeline(tiny_language_model, tiny_tower, tiny_corpus, tmp_path_factory) -> Pipeline:
    images = f"images: {tiny_corpus}/images"
    train, test = (f"{{path: {tiny_corpus}/{name}.json, {images}}}" for name in ("train", "held_out"))
    overrides = [
        f"model.language_model={tiny_language_model}",
        f"model.vision_tower={tiny_tower}",
        f"data.pretrain.sources=[{train}]",
        f"data.finetune.sources=[{train}]",
        f"data.finetune.held_out=[{test}]",
        "data.samples_per_shard=5",
        "pretrain.steps=6",
        "pretrain.samples_per_step=4",
        "pretrain.runtime.save_every=2",
        "finetune.steps=6",
        "finetune.samples_per_step=4",
        "finetune.runtime.save_every=2",
        "eval.tasks.questions.max_new_tokens=4",
        "eval.runtime.batch_size=8",
    ]
    return Pipeline(tmp_path_factory.mktemp("runs"), overrides)


@pytest.fixture(scope="session")
def whole_run(pipeline: Pipeline) -> Path:
    """runs/r after all stages."""
    for stage in STAGES:
        code, output = pipeline.run(stage)
        assert code == 0, output
    return pipeline.runs / "r"
