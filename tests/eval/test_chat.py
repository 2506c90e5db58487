import subprocess
import sys
from pathlib import Path

import pytest

from vlm.errors import Unusable
from vlm.eval.chat import model_named

ROOT = Path(__file__).parents[2]


def test_a_run_a_stage_or_a_folder_is_chosen(tmp_path):
    for folder in ("runs/mine/04_finetune/model", "runs/mine/03_pretrain/model", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"model_type": "llava"}')
    runs = f"runs={tmp_path / 'runs'}"
    assert model_named([runs, "run=mine"]).folder == tmp_path / "runs/mine/04_finetune/model"
    assert model_named([runs, "run=mine", "stage=03_pretrain"]).folder == tmp_path / "runs/mine/03_pretrain/model"
    assert model_named([f"model={tmp_path / 'other'}"]).folder == tmp_path / "other"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["run=nowhere"], "run  launch/all.sh run=nowhere  first"),
        (["model=/nowhere"], "^model: the folder /nowhere is not there"),
        (["rnu=demo"], "rnu=demo is no setting: give run="),
        (["run="], "run= is no setting"),
    ],
)
def test_what_is_not_there_is_said(settings, said):
    with pytest.raises(Unusable, match=said):
        model_named(settings)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "/nowhere", "--prompt", "What?"], "/nowhere is no folder"),
        (["--images", "."], "--images needs --prompt"),
        ([], "the extra `chat`: pip install -e '.[chat]'"),
    ],
)
def test_a_fault_is_one_line_and_neither_torch_nor_gradio_is_imported(tiny_model, arguments, said):
    without_gradio = (
        "import importlib.util, runpy, sys; find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *rest: None if name == 'gradio' else find(name, *rest); "
        "sys.modules['torch'] = sys.modules['gradio'] = None; runpy.run_module('vlm.eval.chat', run_name='__main__')"
    )
    command = [sys.executable, "-c", without_gradio, f"model={tiny_model}", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 1 and said in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr


def test_the_command_answers_a_question(tiny_model, tiny_corpus):
    picture = next((tiny_corpus / "images").iterdir())
    command = [sys.executable, "-m", "vlm.eval.chat", f"model={tiny_model}", "--image", str(picture)]
    command += ["--prompt", "What colour?", "--max-new-tokens", "6"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    assert ran.returncode == 0 and ran.stdout.strip()
