import pytest

from vlm.errors import Unusable
from vlm.model.hub import load, locate


def test_a_model_folder_and_a_hub_id_are_passed_on(tiny_tower):
    assert locate(str(tiny_tower), "tower") == str(tiny_tower)
    for name in ("openai/clip-vit-large-patch14-336", "Qwen/Qwen1.5-4B-Chat", "a/b_c.d"):
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
