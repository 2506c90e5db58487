import subprocess

from vlm.pipeline.provenance import PACKAGES, PROJECT, now, provenance


def test_it_says_which_code_packages_and_command_made_an_artifact(monkeypatch):
    monkeypatch.setattr("sys.argv", ["stages/03_pretrain.py", "run=a b"])
    found = provenance(now())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True).stdout.strip()
    assert found["commit"] == (head or None)
    assert set(found["packages"]) == set(PACKAGES)
    assert all(found["packages"].values())
    assert found["command"].endswith(" stages/03_pretrain.py 'run=a b'")
    assert found["started"] <= found["ended"]


def test_without_git_the_commit_is_left_open(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance(now())["commit"] is None
