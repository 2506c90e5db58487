import shutil
from dataclasses import replace

import pytest

from vlm.errors import Unusable
from vlm.model.assemble import assemble
from vlm.model.hub import fetch, load, locate, read_config, revision_of


def test_a_model_folder_and_a_hub_id_are_passed_on(tiny_tower):
    assert locate(str(tiny_tower), "tower") == str(tiny_tower)
    for name in ("openai/clip-vit-large-patch14-336", "Qwen/Qwen1.5-4B-Chat", "a/b_c.d", "a/b@v1.0", "a/b@refs/pr/3"):
        assert locate(name, "tower") == name


@pytest.mark.parametrize("name", ["none", "./none", "../none", "a/b/c", "demo/tower", "a b/c", "", "/none/at/all"])
def test_what_is_neither_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unusable, match="tower: ") as fault:
        locate(name, "tower")
    assert "\n" not in str(fault.value)


def test_a_folder_without_a_config_and_a_file_are_refused(tmp_path):
    with pytest.raises(Unusable, match=r"holds no config\.json"):
        locate(str(tmp_path), "tower")
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match="is a file"):
        locate(str(tmp_path / "file"), "tower")


def test_a_missing_folder_beside_others_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unusable, match="the folder models/none is not there"):
        locate("models/none", "tower")


def test_a_demo_part_that_was_not_made_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unusable, match=r"python -m vlm\.demo"):
        locate("demo/tower", "tower")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tiny_tower, tmp_path, monkeypatch):
    """The tiny tower as the hub's cache holds a downloaded model: of main, and of the tag v1."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    home = tmp_path / "hub/models--some--tower"
    shutil.copytree(tiny_tower, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    for name in ("main", "v1"):
        (home / "refs" / name).write_text(COMMIT)
    return home / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["some/tower", "some/tower@v1", f"some/tower@{COMMIT}"])
def test_a_hub_id_is_found_with_its_commit(cached, name):
    folder = fetch(name, "tower", weights=True)
    assert folder.samefile(cached)
    assert revision_of(folder) == COMMIT


def test_a_hub_id_assembles_and_its_commit_is_recorded(cached, tiny_model_config, tiny_tokenizer, tmp_path):
    figures = assemble(replace(tiny_model_config, vision_tower="some/tower"), tiny_tokenizer, 0, tmp_path / "model")
    assert figures["vision_tower_revision"] == COMMIT
    assert "language_model_revision" not in figures


@pytest.mark.parametrize("name", ["some/other", "some/tower@v2"])
def test_a_hub_id_that_cannot_be_reached_is_refused_in_one_line(cached, name):
    with pytest.raises(Unusable, match=f"tower: {name} cannot be loaded: ") as fault:
        fetch(name, "tower")
    assert "\n" not in str(fault.value)


def test_a_folder_of_the_users_own_has_no_commit(tiny_tower):
    assert fetch(str(tiny_tower), "tower") == tiny_tower
    assert revision_of(tiny_tower) is None


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ("{", "holds no config.json that can be read"),
        ('{"model_type": "qwen", "auto_map": {}}', r"convert it first with  python -m vlm.model.qwen_v1 SRC OUT"),
        ('{"model_type": "mystery", "auto_map": {}}', "needs code of its own repository, which is never run"),
        ('{"model_type": "mystery"}', "is of the kind mystery, which this version of transformers does not know"),
        ("{}", "is of the kind None"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_in_one_line(tmp_path, config, fault):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(Unusable, match=fault) as problem:
        read_config(tmp_path, "here", "language model")
    assert "\n" not in str(problem.value)


def test_a_loader_never_runs_code_of_the_repository():
    assert load(lambda name, **given: (name, given), "x", "part", {"a": 1}) == (
        "x",
        {"trust_remote_code": False, "a": 1},
    )


@pytest.mark.parametrize(
    ("problem", "line"),
    [(OSError("first\nsecond"), "first"), (ValueError(""), "ValueError"), (KeyError("weight"), "'weight'")],
)
def test_a_librarys_fault_becomes_one_line(problem, line):
    def failing(_name: str, **_given) -> None:
        raise problem

    with pytest.raises(Unusable) as fault:
        load(failing, "here", "tower")
    assert str(fault.value) == f"tower: here cannot be loaded: {line}"
