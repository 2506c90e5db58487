"""Each script by itself: what it says to a wrong call, quickly and in one line."""

import re
import subprocess
import sys

import pytest

from launch.submit import stage_of

from .conftest import ROOT, STAGES

SCRIPTS = sorted((ROOT / "stages").glob("*.py"))
# Runs a script as `python` would, and says at the end whether torch came in.
WATCHED = """
import atexit, os, runpy, sys
atexit.register(lambda: print("torch" in sys.modules))
script = sys.argv.pop(1)
sys.argv[0] = script
sys.path[0] = os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_settings_and_artifact_share_one_name(script):
    """Seen to fail with stage 03 reading 01_assembled, and with its docstring saying that it writes 03_pretraining."""
    stage = stage_of(script)
    text = script.read_text()
    assert stage.name == script.stem
    assert set(stage.reads) <= {other.stem for other in SCRIPTS}
    assert f"Stage {script.stem.split('_')[0]}" in text.splitlines()[0]
    assert re.search(rf"^Writes  {stage.name}\b", text, re.M)
    assert f'config_name="{stage.name if script.stem not in STAGES else "config"}"' in text


@pytest.mark.parametrize(
    "arguments", [["--help"], ["seeed=1"], ["data.finetune.sources=[{path: a, format: b}]"], ["run=none"]], ids=str
)
def test_an_answer_about_settings_and_inputs_needs_no_torch(arguments, tmp_path):
    """Seen to fail with torch imported at the head of stage 04."""
    command = [sys.executable, "-c", WATCHED, "stages/04_finetune.py", f"runs={tmp_path}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "Traceback" not in done.stderr


def call(stage: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, f"stages/{stage}.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_help_lists_groups_and_settings(stage):
    code, said = call(stage, "--help")
    assert code == 0
    assert "finetune: freeze_vision, full, lora, qlora" in said
    assert "samples_per_step" in said


def test_a_misspelt_setting_is_named_with_the_nearest_one():
    code, said = call("04_finetune", "finetune.lora.rnk=8")
    assert (code, said) == (2, "04_finetune: there is no setting finetune.lora.rnk: did you mean finetune.lora.rank?\n")


def test_a_misspelt_key_of_a_source_is_named():
    code, said = call("02_shard", "data.finetune.sources=[{pth: a.json}]")
    assert code == 2
    assert "there is no setting data.finetune.sources.pth" in said
    assert said.count("\n") == 1


def test_a_missing_corpus_is_named(tmp_path):
    (tmp_path / "x/00_tokenizer").mkdir(parents=True)
    (tmp_path / "x/00_tokenizer/artifact.json").write_text('{"key": "k", "settings": {}, "inputs": {}}')
    code, said = call("02_shard", f"runs={tmp_path}", "run=x", "data.finetune.sources=[{path: none.json}]")
    assert code == 1
    assert said.endswith("none.json is not there\n") or "demo/corpus/pretrain.json is not there" in said


def test_a_value_of_the_wrong_type_is_refused():
    code, said = call("03_pretrain", "pretrain.epochs=fast")
    assert code == 2
    assert "could not be converted to Float" in said
    assert said.count("\n") == 1


def test_an_unknown_experiment_lists_those_there_are():
    code, said = call("00_tokenizer", "experiment=nope")
    assert code == 2
    assert "conf/experiment/nope.yaml" in said and "demo" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("stage", "missing"), [("01_assemble", "00_tokenizer"), ("04_finetune", "03_pretrain")])
def test_a_missing_input_names_the_stage_to_run(stage, missing, tmp_path):
    code, said = call(stage, f"runs={tmp_path}", "run=x")
    assert code == 1
    assert f"run  python stages/{missing}.py run=x  first" in said
    assert said.count("\n") == 1


def test_a_missing_model_folder_is_named_and_nothing_is_left_that_looks_whole(tmp_path):
    code, said = call("00_tokenizer", f"runs={tmp_path}", "run=x", f"model.language_model={tmp_path}/nothing")
    assert code == 1
    assert "nothing is not there" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not (tmp_path / "x/00_tokenizer").exists()
