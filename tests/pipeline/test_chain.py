import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.pipeline import jobs
from vlm.pipeline.chain import submit_all
from vlm.pipeline.stage import Stage

ROOT = Path(__file__).parents[2]
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("[0-9][0-9]_*.py"))
COUNTING = """\
#!/bin/sh
# sbatch that counts, and takes no job for more than 99 cores
case "$*" in *--test-only*) grep -q "cpus-per-task=1.." && echo "sbatch: error: More processors requested than permitted" >&2 && exit 1; exit 0;; esac
folder=$(dirname "$0")
number=$(($(cat "$folder/last" 2>/dev/null || echo 100) + 1))
echo $number > "$folder/last"
echo "Submitted batch job $number"
"""
QUEUED = """\
#!/bin/sh
# squeue that regards every job as waiting
case "$*" in *--jobs=*) for job in $(echo "$*" | sed 's/.*--jobs=\\([0-9,]*\\).*/\\1/; s/,/ /g'); do echo "$job|$job|PENDING|Priority|1:00|"; done;; esac
"""


@pytest.fixture
def launch(tmp_path, answers):
    """Run launch/submit.py in a process where torch cannot be imported."""
    for name, text in (("sbatch", COUNTING), ("squeue", QUEUED)):
        (tmp_path / "bin" / name).write_text(text)
    (tmp_path / "no/torch").mkdir(parents=True)
    (tmp_path / "no/torch/__init__.py").write_text("raise ImportError('torch on the login node')")

    def run(*overrides: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "launch/submit.py", f"runs={tmp_path}", "run=r", "+cluster=slurm_cpu", *overrides],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}/no:{ROOT}"},
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_whole_graph_is_queued_with_its_dependencies_and_without_torch(launch, tmp_path):
    code, said = launch()
    assert code == 0, said
    found = {stage: jobs.load(tmp_path / "r", stage) for stage in STAGES}
    ids = {stage: job.job_id for stage, job in found.items()}
    reads = {
        "00_tokenizer": set(),
        "01_assemble": {"00_tokenizer"},
        "02_shard": {"00_tokenizer"},
        "03_pretrain": {"01_assemble", "02_shard"},
        "04_finetune": {"03_pretrain", "02_shard"},
        "05_eval": {"04_finetune", "02_shard"},
    }
    assert {stage: job.waits_for for stage, job in found.items()} == {
        stage: {other: ids[other] for other in reads[stage]} for stage in STAGES
    }
    table = [line for line in said.splitlines() if line.startswith(tuple(STAGES)) and "PENDING" in line]
    assert len(table) == len(STAGES)
    assert "scancel" in said.splitlines()[-1]
    code, said = launch()
    assert (code, said.count("already queued")) == (0, len(STAGES))


def test_another_choice_of_settings_is_told_before_anything_is_queued_beside_it(launch):
    launch()
    code, said = launch("data.max_tokens=77")
    assert code == 1
    assert "02_shard: job" in said and "max_tokens=2048, not 77" in said


def test_what_a_later_stage_would_be_refused_for_is_told_before_anything_is_queued(launch, tmp_path):
    other = {"key": "0", "settings": {"seed": 1}, "inputs": {}, "started": "then"}
    (tmp_path / "r/04_finetune.partial/checkpoints").mkdir(parents=True)
    (tmp_path / "r/04_finetune.partial/claim.json").write_text(json.dumps(other))
    (tmp_path / "r/04_finetune.partial/metrics.jsonl").touch()
    code, said = launch()
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("04_finetune: ") and said.endswith("; nothing was queued\n")
    assert not (tmp_path / "bin/last").exists()


def test_what_slurm_would_refuse_of_a_later_stage_is_told_in_its_words_before_anything_is_queued(launch, tmp_path):
    code, said = launch("cluster.cpus_per_gpu=100")
    assert (code, said) == (
        1,
        "03_pretrain: SLURM refuses the job: More processors requested than permitted; nothing was queued\n",
    )
    assert not (tmp_path / "bin/last").exists()


def test_a_training_that_cannot_fit_is_refused_before_the_stages_it_reads_are_queued(
    found, composed, tmp_path, answers
):
    answers(sbatch=[0, "Submitted batch job 41\n", ""])
    first = Stage("stages/01_x.py", (), ("seed",), print)
    second = Stage("stages/04_y.py", ("01_x",), ("finetune",), print, distributed=True, estimate=lambda *_: found)
    with pytest.raises(SystemExit, match="04_y: it needs 30.0 GiB.*; nothing was queued"):
        submit_all([first, second], composed("+cluster=slurm_a100x4", "hardware.memory_gib=24"))
    assert not jobs.load_all(tmp_path / "r")


def test_a_cluster_is_asked_for(launch, tmp_path):
    done = subprocess.run([sys.executable, "launch/submit.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "submit: no cluster is chosen: give +cluster=NAME, or run launch/all.sh without it\n",
    )
