import json
import shutil

import pytest

from vlm.errors import Unusable
from vlm.model.saved import find


@pytest.fixture
def copied(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "r" / "03_pretrain" / "model")


def test_a_folder_and_the_artifact_around_it_are_the_same_model(copied):
    assert find(str(copied.parent)).folder == find(str(copied)).folder == copied
    assert find(str(copied)).fingerprint == find(str(copied.parent)).fingerprint


def test_the_fingerprint_follows_the_weights_and_the_small_files(copied):
    before = find(str(copied)).fingerprint
    assert find(str(copied)).fingerprint == before
    weights = next(copied.glob("*projector*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = find(str(copied)).fingerprint
    (copied / "generation_config.json").write_text("{}")
    assert len({before, changed, find(str(copied)).fingerprint}) == 3


def test_a_checkpoint_and_an_adapter_find_the_model_they_lie_on(copied, tmp_path):
    run = tmp_path / "r"
    checkpoint = run / "04_finetune.partial" / "checkpoints" / "step_000002"
    adapter = run / "04_finetune" / "adapter"
    for folder, name in ((checkpoint, "weights.safetensors"), (adapter, "adapter_config.json")):
        folder.mkdir(parents=True)
        (folder / name).write_text(json.dumps({"base_model_name_or_path": None}))
        assert find(str(folder)).folder == copied
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(copied.parent)}))
    assert find(str(adapter)).folder == copied
    elsewhere = shutil.copytree(checkpoint, tmp_path / "step_000002")
    with pytest.raises(Unusable, match="does not say which model it belongs to: give it with eval.base="):
        find(str(elsewhere))
    assert find(str(elsewhere), str(copied)).checkpoint == elsewhere


@pytest.mark.parametrize(
    ("name", "base", "fault"),
    [
        ("r/absent", None, "the folder .*r/absent is not there"),
        ("r/04_finetune", None, r"run  python stages/04_finetune\.py  first"),
        ("r/03_pretrain/model/config.json", None, "is a file, not a model folder"),
        ("r", None, "holds no config.json"),
        ("r/03_pretrain/model", "other", "neither an adapter nor a checkpoint"),
    ],
)
def test_what_is_no_model_is_refused_in_a_line(copied, tmp_path, name, base, fault):
    with pytest.raises(Unusable, match=fault):
        find(str(tmp_path / name), base)


def test_a_training_that_is_not_done_names_its_checkpoint(copied, tmp_path):
    step = tmp_path / "r" / "04_finetune.partial" / "checkpoints" / "step_000004"
    step.mkdir(parents=True)
    with pytest.raises(
        Unusable, match="is not whole yet: choose one of its checkpoints, like eval.model=.*step_000004"
    ):
        find(str(step.parents[1]))


def test_another_kind_of_model_is_refused(tiny_language_model):
    with pytest.raises(Unusable, match="is a model of the kind qwen2, not llava"):
        find(str(tiny_language_model))
