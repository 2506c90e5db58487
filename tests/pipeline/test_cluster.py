"""What is submitted, without SLURM: tests/slurm/ submits it."""

import os
import sys
from pathlib import Path

import pytest

from vlm.pipeline import cluster, jobs
from vlm.pipeline.settings import typed
from vlm.pipeline.stage import Stage

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
CLUSTERS = sorted(path.stem for path in (ROOT / "conf/cluster").glob("slurm_*.yaml"))


def nothing(cfg, inputs, out) -> None:
    """Work."""


SINGLE = Stage("stages/01_assemble.py", (), ("seed",), nothing)
SHARED = Stage("stages/02_shard.py", (), ("seed",), nothing, can_be_shared=True)
RANKS = Stage("stages/03_pretrain.py", (), ("seed",), nothing, distributed=True)


def script(stage: Stage, composed, tmp_path: Path, *, array: int = 1) -> str:
    """Return the text that goes to sbatch, with the paths of this machine replaced."""
    root, settings = tmp_path / "r", typed(composed).cluster
    config = root / "jobs" / f"{stage.name}.frozen.yaml"
    name = f"{stage.name}.r.0a1b2c" + (".shares" if array > 1 else "")
    executor = cluster.slurm_executor(stage, settings, config, root, name, ["11", "12"], array)
    text = executor._make_submission_file_text(cluster.command_of(stage, config, array), "")
    for path, stand_in in ((tmp_path, "RUNS"), (sys.executable, "PYTHON"), (ROOT, "PROJECT"), (Path.cwd(), "HERE")):
        text = text.replace(str(path), stand_in)
    return text


@pytest.mark.parametrize("name", CLUSTERS)
def test_batch_scripts_are_those_of_the_golden_files(name, composed, tmp_path, answers):
    settings = composed(f"+cluster={name}")
    array = typed(settings).cluster.single.array
    texts = [script(stage, settings, tmp_path) for stage in (SINGLE, RANKS)]
    text = "\n".join([*texts, script(SHARED, settings, tmp_path, array=array)])
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get("GOLDEN") == "write":  # GOLDEN=write launch/test.sh tests/pipeline: then read the difference
        golden.write_text(text)
    assert text == golden.read_text()


def test_what_a_site_asks_for_reaches_sbatch(composed, tmp_path, answers):
    asked = ["partition=gpu", "account=us", "qos=high", "constraint=a100", "min_nodes=2", "nodes=4", "gpu_type=a100"]
    more = ["interface=ib0", "setup=[module load cuda]", "+additional_parameters.mail-type=END"]
    settings = composed("+cluster=slurm_a100x8", *(f"cluster.{one}" if one[0] != "+" else f"+cluster.{one[1:]}" for one in (*asked, *more)))  # fmt: skip
    lines = script(RANKS, settings, tmp_path).splitlines()
    assert {f"#SBATCH --{one}" for one in ("partition=gpu", "account=us", "qos=high", "constraint=a100")} <= {*lines}
    assert {"#SBATCH --nodes=2-4", "#SBATCH --gpus-per-node=a100:8", "#SBATCH --mail-type=END"} <= {*lines}
    assert {"#SBATCH --cpus-per-task=64"} <= {*lines} and not [one for one in lines if "#SBATCH --ntasks" in one]
    assert "--cpus-per-task=8 --ntasks-per-node=8 bash -c" in next(one for one in lines if one.startswith("srun"))
    assert {"module load cuda", "export NCCL_SOCKET_IFNAME=ib0", "export GLOO_SOCKET_IFNAME=ib0"} <= {*lines}


def test_a_submission_is_recorded_and_a_second_one_told(composed, tmp_path, answers, capsys):
    settings = composed("+cluster=slurm_cpu")
    answers(sbatch=[0, "Submitted batch job 41\n", ""])
    SINGLE.run(settings)
    assert jobs.load(tmp_path / "r", "01_assemble").job_id == "41"
    assert (tmp_path / "r/jobs/01_assemble/41_submission.sh").is_file()
    answers(squeue=[0, "41|41|PENDING|Priority|1:00|\n", ""], sbatch=[1, "", "not again"])
    SINGLE.run(settings)
    assert "already queued as job 41" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="job 41 of .* makes it with seed=0, not 7: scancel 41 first"):
        SINGLE.run(composed("+cluster=slurm_cpu", "seed=7"))


def test_an_input_on_its_way_becomes_a_dependency(composed, tmp_path, answers):
    settings = composed("+cluster=slurm_cpu")
    answers(sbatch=[0, "Submitted batch job 41\n", ""])
    SINGLE.run(settings)
    reader = Stage("stages/03_pretrain.py", ("01_assemble",), ("seed",), nothing, distributed=True)
    answers(squeue=[0, "41|41|RUNNING|None|1:00|n\n", ""], sbatch=[0, "Submitted batch job 42\n", ""])
    reader.run(settings)
    assert jobs.load(tmp_path / "r", "03_pretrain").waits_for == {"01_assemble": "41"}
    assert "#SBATCH --dependency=afterok:41\n" in (tmp_path / "r/jobs/03_pretrain/42_submission.sh").read_text()
    answers(squeue=[0, "41|41|FAILED|None|1:00|n\n", ""])
    (tmp_path / "r/jobs/03_pretrain.json").unlink()
    with pytest.raises(SystemExit, match="01_assemble is not there"):
        reader.run(settings)


@pytest.mark.parametrize(
    "words",
    [
        "invalid partition specified: nope",
        "Batch job submission failed: Invalid account or account/partition combination specified",
        "Batch job submission failed: Invalid qos specification",
    ],
)
def test_a_refusal_is_told_in_slurms_own_words_and_leaves_no_record(words, composed, tmp_path, answers, capfd):
    answers(sbatch=[1, "", f"sbatch: error: {words}\n"])
    with pytest.raises(SystemExit) as refused:
        SINGLE.run(composed("+cluster=slurm_cpu"))
    assert refused.value.code == f"01_assemble: SLURM refuses the job: {words}"
    assert capfd.readouterr().err == ""
    assert jobs.load(tmp_path / "r", "01_assemble") is None
    assert not list((tmp_path / "r/jobs/01_assemble").iterdir())


def test_without_slurm_it_says_what_else_there_is(composed, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"sbatch is not on this machine.*\+cluster=local2 or torchrun"):
        SINGLE.run(composed("+cluster=slurm_cpu"))


def test_a_job_inside_a_job_inherits_nothing_but_where_slurm_is(composed, answers, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        cluster.submitit.SlurmExecutor, "_submit_command", lambda self, command: seen.update(os.environ) or Exception
    )
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    with pytest.raises(AttributeError):  # there is no job to record
        SINGLE.run(composed("+cluster=slurm_cpu"))
    assert "SLURM_MEM_PER_CPU" not in seen
    assert seen["SLURM_CONF"] == os.environ["SLURM_CONF"] == "/etc/slurm.conf"
