"""The chain 00 to 05 as a user runs it: once, again, changed, killed."""

import json
import random
import shutil
import time

import pytest

from vlm.pipeline.predictions import comparison

from .conftest import STAGES, Pipeline, contents


def test_every_stage_leaves_its_artifact(whole_run):
    assert sorted(path.name for path in whole_run.iterdir() if not path.name.startswith(".")) == STAGES
    assert (whole_run / "03_pretrain/model/config.json").is_file()
    assert (whole_run / "04_finetune/model/model.safetensors.index.json").is_file()
    assert (whole_run / "05_eval/report.html").is_file()
    inputs = json.loads((whole_run / "04_finetune/artifact.json").read_text())["inputs"]
    assert set(inputs) == {"02_shard", "03_pretrain"}


def test_run_again_every_stage_is_up_to_date(pipeline: Pipeline, whole_run):
    for stage in STAGES:
        code, said = pipeline.run(stage)
        assert code == 0
        assert said.endswith("is up to date\n") and said.count("\n") == 1


@pytest.mark.parametrize("stage", ["03_pretrain", "04_finetune"])
def test_steps_samples_tokens_and_parameters_are_those_that_were_expected(whole_run, stage):
    rows = {row["name"]: (row["predicted"], row["measured"]) for row in comparison(whole_run / stage)}
    exact = ("steps", "samples", "tokens", "supervised tokens", "parameters that train")
    assert all(rows[name][0] == rows[name][1] > 0 for name in exact)
    assert rows["time of a step"][0] > 0 and rows["memory of the first rank"][1] > 0


def test_a_changed_rank_is_refused_by_04_alone(pipeline: Pipeline, whole_run):
    for stage in STAGES[:4]:
        assert "up to date" in pipeline.run(stage, "finetune.lora.rank=3")[1]
    code, said = pipeline.run("04_finetune", "finetune.lora.rank=3")
    assert code == 1
    assert "finetune.lora.rank=32, not 3" in said
    assert said.count("\n") == 1


def test_another_run_shares_nothing(pipeline: Pipeline, whole_run):
    code, said = pipeline.run("04_finetune", "finetune.lora.rank=3", run="other")
    assert code == 1
    assert "other/03_pretrain is not there" in said


def test_the_loss_and_the_rates_are_in_the_metrics(whole_run):
    lines = [json.loads(line) for line in (whole_run / "04_finetune/metrics.jsonl").read_text().splitlines()]
    trained, looked = lines[-2:]
    assert trained["step"] == looked["step"] == 6
    assert trained.keys() >= {"loss", "lr/projector", "lr/language_model", "tokens_per_second"}
    assert looked.keys() >= {"held_out/loss", "questions/accuracy", "questions/low", "questions/high"}
    assert (whole_run / "04_finetune/best/step_000006/COMPLETE").is_file()
    assert "latest, step 6" in (whole_run / "04_finetune/samples.html").read_text()
    assert list((whole_run / "04_finetune/tensorboard").glob("events.out.*"))


def test_a_sweep_shares_what_is_equal_and_ends_with_a_table(pipeline: Pipeline, whole_run):
    base = pipeline.runs / "swept"
    for earlier in STAGES[:4]:
        shutil.copytree(whole_run / earlier, base / earlier)
    rates = ("finetune.lr.projector=1e-3,2e-3", "-m")
    code, said = pipeline.run("04_finetune", *rates, run="swept")
    assert code == 0, said
    jobs = [base / "sweep" / f"finetune.lr.projector={rate}" for rate in ("0.001", "0.002")]
    assert all((job / "02_shard").resolve() == base / "02_shard" for job in jobs)
    table = said.splitlines()[-3:]
    assert "held_out/loss" in table[0].split()
    assert [line.split()[0] for line in table[1:]] == [job.name for job in jobs]
    assert (
        len({(job / "04_finetune/model/model-multi_modal_projector-00001.safetensors").read_bytes() for job in jobs})
        == 2
    )

    code, said = pipeline.run("04_finetune", "finetune.lr.projector=2e-3,1e-3", "-m", run="swept")
    assert said.count("up to date") == 2
    code, said = pipeline.run("05_eval", *rates, run="swept")
    assert code == 0, said
    assert all((job / "05_eval/report.html").is_file() for job in jobs)
    code, said = pipeline.run("05_eval", "finetune.lr.projector=3e-3,4e-3", "-m", run="swept")
    assert code == 1  # what was not trained is not evaluated as if it were
    assert "04_finetune is not there" in said


def test_shards_of_an_array_of_tasks_equal_those_of_one_process(pipeline: Pipeline, whole_run):
    shutil.copytree(whole_run / "00_tokenizer", pipeline.runs / "array/00_tokenizer")
    tasks = [pipeline.start("02_shard", f"part={task}/2", run="array") for task in (0, 1)]
    said = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "share 1/2 is done" in said[1]
    partial = pipeline.runs / "array/02_shard.partial/finetune"
    assert (partial / "000000.tar").is_file() and not (partial / "index.npy").exists()
    (partial / "000001.json").unlink()  # that task was killed before it committed its shard
    assert pipeline.run("02_shard", run="array")[0] == 0
    assert contents(pipeline.runs / "array/02_shard") == contents(whole_run / "02_shard")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_the_middle_and_run_again_a_stage_ends_with_the_same_bytes(pipeline, whole_run, stage):
    run = f"killed_{stage}"
    for name in (run, f"{run}_timed"):
        for earlier in STAGES[: STAGES.index(stage)]:
            shutil.copytree(whole_run / earlier, pipeline.runs / name / earlier)
    began = time.monotonic()
    assert pipeline.fork(stage, run=f"{run}_timed").wait()[0] == 0
    whole = time.monotonic() - began
    moments = random.Random(stage)
    for _ in range(4):
        process = pipeline.fork(stage, run=run)
        time.sleep(moments.uniform(0.1, 0.98) * whole)
        process.kill()
        process.wait()
    code, said = pipeline.fork(stage, run=run).wait()
    assert code == 0, said
    assert contents(pipeline.runs / run / stage) == contents(whole_run / stage)
