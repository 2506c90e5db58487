import json
from pathlib import Path

import pytest

from vlm.pipeline import artifact
from vlm.pipeline.artifact import Identity
from vlm.pipeline.sweep import adopt, name_of, share, table


@pytest.fixture
def make(tmp_path):
    def make(place: str, settings: dict, inputs: tuple[str, ...] = (), **figures: object) -> Path:
        """Make a whole artifact runs/demo/`place` from others of its run."""
        out = tmp_path / "demo" / place
        keys = {name: artifact.load(out.parent / name).key for name in inputs}
        with artifact.publish(out, Identity(settings, keys), "", first=True) as folder:
            artifact.write_figures(folder, figures)
        return out

    return make


def test_earlier_stages_are_adopted_as_far_as_the_choice_leaves_them_as_they_are(make, tmp_path):
    shards, trained = make("02_shard", {"seed": 0}), make("03_pretrain", {"pretrain.lr": 1}, ("02_shard",))
    make("04_finetune", {"finetune.lr": 1}, ("03_pretrain",))
    base = tmp_path / "demo"
    same, other = base / "sweep/same", base / "sweep/other"
    adopt(base, same, "04_finetune", {"seed": 0, "pretrain.lr": 1, "finetune.lr": 2})
    assert {path.name: path.resolve() for path in same.iterdir()} == {"02_shard": shards, "03_pretrain": trained}
    adopt(base, other, "05_eval", {"seed": 0, "pretrain.lr": 2, "finetune.lr": 1})
    assert [path.name for path in other.iterdir()] == ["02_shard"]  # 04 was made from another 03


def test_equal_artifacts_are_shared_by_key_and_a_link_to_nowhere_is_replaced(make, tmp_path):
    base, out = tmp_path / "demo", tmp_path / "demo/sweep/b/02_shard"
    made = make("sweep/a/02_shard", {"data": 1})
    share(base, out, "another key")
    assert not out.exists()
    out.parent.mkdir(parents=True)
    out.symlink_to("gone")
    share(base, out, artifact.load(made).key)
    assert out.resolve() == made
    assert not Path(out.readlink()).is_absolute()


def test_a_folder_is_named_by_the_swept_settings_in_any_order():
    assert name_of(["b=2", "a.b=1e-4"]) == name_of(["a.b=1e-4", "b=2"]) == "a.b=1e-4,b=2"
    assert name_of(["data.finetune.sources=[{path: a/b.json}]"]) == "data.finetune.sources=_path_a_b.json_"
    assert name_of([]) is None
    long = [name_of([f"x={'y' * 300}{i}"]) for i in range(2)]
    assert long[0] != long[1] and len(long[0]) < 200


def test_the_table_shows_the_results_that_differ(make):
    jobs = [
        make(
            f"sweep/lr={lr}/04_finetune",
            {"lr": lr},
            step=10,
            loss=loss,
            q={"accuracy": 50.0 + lr, "interval": [1, 2]},
            memory_bytes=lr,
            export_gate={"differ by": lr * 1e-7},
        )
        for lr, loss in ((1, 0.51234), (2, 0.4))
    ]
    assert [line.split() for line in table(jobs).splitlines()] == [
        ["loss", "q.accuracy"],
        ["lr=1", "0.5123", "51"],
        ["lr=2", "0.4", "52"],
    ]


def test_a_record_without_figures_has_none(make):
    assert artifact.figures_of(make("00_tokenizer", {})) == {}
    assert json.loads((make("01_assemble", {}) / "artifact.json").read_text())["figures"] == {}
