import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.errors import Unusable
from vlm.pipeline import artifact
from vlm.pipeline.artifact import Identity

ONE = Identity({"lr": 1.0, "steps": 5}, {"00_x": "abc"})
OTHER = Identity({"lr": 2.0, "steps": 5}, {"00_x": "abc"})


def make(path: Path, identity: Identity = ONE) -> None:
    with artifact.publish(path, identity, "a: 1", first=True) as folder:
        (folder / "content").write_text("whole")
        artifact.write_figures(folder, {"tokens": 3})


def test_equal_settings_have_equal_keys_whatever_their_order():
    assert Identity({"b": 1, "a": 2}, {}).key == Identity({"a": 2, "b": 1}, {}).key
    assert ONE.key != OTHER.key
    assert ONE.key != Identity(ONE.settings, {"00_x": "other"}).key


def test_a_whole_artifact_says_what_it_is_made_of(tmp_path):
    make(tmp_path / "01_y")
    record = json.loads((tmp_path / "01_y/artifact.json").read_text())
    assert record["key"] == ONE.key
    assert record["figures"] == {"tokens": 3}
    assert set(record["sha256"]) == {"config.yaml", "content"}
    assert sorted(file.name for file in (tmp_path / "01_y").iterdir()) == ["artifact.json", "config.yaml", "content"]
    assert artifact.load(tmp_path / "01_y").inputs == {"00_x": "abc"}


def test_another_key_is_refused_and_the_difference_named(tmp_path):
    make(tmp_path / "01_y")
    artifact.require(tmp_path / "01_y", ONE)
    with pytest.raises(Unusable, match=r"lr=1\.0, not 2\.0"):
        artifact.require(tmp_path / "01_y", OTHER)


def test_failed_work_leaves_only_a_partial_folder_and_is_gone_on_with(tmp_path):
    with pytest.raises(RuntimeError), artifact.publish(tmp_path / "01_y", ONE, "", first=True) as folder:
        (folder / "half").write_text("1")
        raise RuntimeError
    assert not (tmp_path / "01_y").exists()
    with artifact.publish(tmp_path / "01_y", ONE, "", first=True) as folder:
        assert (folder / "half").read_text() == "1"
    assert (tmp_path / "01_y/half").is_file()


def test_interrupted_work_is_refused_with_other_settings(tmp_path):
    with pytest.raises(RuntimeError), artifact.publish(tmp_path / "01_y", ONE, "", first=True) as folder:
        (folder / "half").write_text("1")
        raise RuntimeError
    with (
        pytest.raises(Unusable, match=r"begun with lr=1\.0, not 2\.0"),
        artifact.publish(tmp_path / "01_y", OTHER, "", first=True),
    ):
        pass


def test_work_that_failed_before_it_wrote_anything_does_not_bind_the_settings(tmp_path):
    with pytest.raises(RuntimeError), artifact.publish(tmp_path / "01_y", ONE, "a: 1", first=True):
        raise RuntimeError
    make(tmp_path / "01_y", OTHER)
    assert artifact.load(tmp_path / "01_y").key == OTHER.key


def test_work_goes_on_with_a_setting_that_may_grow_and_no_other(tmp_path):
    path, longer = tmp_path / "01_y", Identity({"lr": 1.0, "steps": 9}, {"00_x": "abc"})
    make(path)
    with artifact.publish(path, longer, "a: 1", first=True, may_grow=("steps",)) as folder:
        assert (folder / "content").read_text() == "whole"
        assert not path.exists()
    artifact.require(path, longer)
    other = Identity({"lr": 2.0, "steps": 9}, {"00_x": "abc"})
    assert not other.extends(longer.settings, longer.inputs, ("steps",))
    assert not Identity(longer.settings, {"00_x": "new"}).extends(longer.settings, longer.inputs, ("steps",))


def test_two_processes_cannot_work_on_one_artifact(tmp_path):
    with artifact.publish(tmp_path / "01_y", ONE, "", first=True):
        other = elsewhere(tmp_path / "01_y", "")
        assert "another process is working on 01_y" in other.stderr


def test_a_worker_that_outlives_its_killed_stage_does_not_hold_the_lock(tmp_path):
    body = "import os, signal, time; os.fork() or time.sleep(30); os.kill(os.getpid(), signal.SIGKILL)"
    killed = elsewhere(tmp_path / "01_y", body, wait_for_output=False)
    assert killed.returncode == -9
    make(tmp_path / "01_y")


def elsewhere(path: Path, body: str, *, wait_for_output: bool = True) -> subprocess.CompletedProcess:
    """Publish in another process, running `body` inside."""
    script = "\n".join(
        [
            "from pathlib import Path",
            "from vlm.pipeline import artifact",
            "identity = artifact.Identity({'lr': 1.0, 'steps': 5}, {'00_x': 'abc'})",
            f"with artifact.publish(Path({str(path)!r}), identity, '', first=True):",
            f"    pass; {body}",
        ]
    )
    where = subprocess.PIPE if wait_for_output else subprocess.DEVNULL
    return subprocess.run([sys.executable, "-c", script], stdout=where, stderr=where, text=True)


def test_a_missing_artifact_is_named(tmp_path):
    with pytest.raises(Unusable, match="01_y is not there"):
        artifact.load(tmp_path / "01_y")
