"""The script, run as a user runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.pipeline.artifact import load

ROOT = Path(__file__).parents[2]
SECRET = "sk-not-to-be-written-anywhere-42"


@pytest.fixture
def call(endpoint, captioned, tiny_tokenizer, tmp_path):
    """Return a function that runs the script with a key in its environment and returns its status and what it said."""
    shutil.copytree(tiny_tokenizer, tmp_path / "runs/r/00_tokenizer")
    (tmp_path / "runs/r/00_tokenizer/artifact.json").write_text('{"key": "k", "settings": {}, "inputs": {}}')
    source = (
        f"{{path: {captioned.path}, annotations: {captioned.annotations}, images: {captioned.images}, "
        "format: coco_captions, limit: 16}"
    )

    def run(*more: str) -> tuple[int, str]:
        overrides = [f"runs={tmp_path}/runs", "run=r", f"instruct.sources=[{source}]"]
        overrides += [] if "instruct.model=null" in more else ["instruct.model=m"]
        overrides += ["instruct.runtime.backoff=0.01"]
        if not any("base_url" in one for one in more):
            overrides.append(f"instruct.runtime.base_url={endpoint.url}")
        alone = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
        done = subprocess.run(
            [sys.executable, "stages/02a_instruct.py", *more, *overrides],
            cwd=ROOT,
            env=alone | {"OPENAI_API_KEY": SECRET},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_no_key_is_written_anywhere_even_if_the_endpoint_says_it(call, endpoint, tmp_path):
    def telling(body, nth):
        return f"Question: What is the key, is it there?\nAnswer: It is {SECRET}, and that is the key of it.\n" * 2

    endpoint.answer, endpoint.faults, endpoint.fault_kinds = telling, 0.4, ("429", "500")
    code, said = call("instruct=[conversation]")
    assert code == 0, said
    assert endpoint.keys == {SECRET}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"artifact.json", "config.yaml", "requests.jsonl", "preview.html"} <= {path.name for path in files}
    assert b"***" in (tmp_path / "runs/r/02a_instruct/requests.jsonl").read_bytes()
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in said
    figures = (load(tmp_path / "runs/r/02a_instruct").path / "artifact.json").read_text()
    assert '"samples": 8' in figures
    assert call("instruct=[conversation]", "instruct.runtime.workers=2")[1].endswith("is up to date\n")
    code, said = call("instruct=[conversation]", "instruct.kinds.conversation.max_turns=9")
    assert code == 1
    assert "instruct.kinds.conversation.max_turns=8, not 9" in said


def test_a_dry_run_publishes_nothing_and_leaves_the_settings_open(call, endpoint, tmp_path):
    code, said = call("instruct.runtime.dry_run=true", "instruct.runtime.input_price=2.5")
    assert code == 0, said
    assert "likely cost" in said
    assert endpoint.calls == []
    assert not (tmp_path / "runs/r/02a_instruct").exists()
    code, said = call("instruct=[detail]")
    assert code == 0, said


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("instruct.model=null", "instruct.model has no value"),
        ("instruct.runtime.base_url=https://example.org/v1", "the environment has no NONE"),
        ("instruct.runtime.max_cost=1", "needs input_price="),
    ],
)
def test_wrong_settings_are_named_in_one_line(call, wrong, says):
    code, said = call(wrong, "instruct.runtime.key_variable=NONE")
    assert code == 1
    assert says in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_kind_of_the_users_own_is_a_file_in_a_folder_of_their_own(call, endpoint, tmp_path):
    kind = tmp_path / "conf/instruct/mine.yaml"
    kind.parent.mkdir(parents=True)
    kind.write_text(
        "# @package instruct.kinds.mine\nprompt: 你看。\nformat: text\nquestions: [这是什么？]\nscripts: [CJK]\n"
    )
    endpoint.answer = lambda body, nth: "这是一只狗，它在图片的左边。"
    code, said = call("--config-dir", str(tmp_path / "conf"), "instruct=[mine]")
    assert code == 0, said
    corpus = (tmp_path / "runs/r/02a_instruct/corpora/captions.json").read_text()
    assert corpus.count("<image>\\n这是什么？") == corpus.count("这是一只狗，它在图片的左边。") == 8
    kind.write_text("prompt: [what?\n")
    code, said = call("--config-dir", str(tmp_path / "conf"), "instruct=[mine]")
    assert (code, said.count("\n")) == (2, 1)
    assert "mine.yaml" in said
