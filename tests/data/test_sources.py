import importlib.util
import json
import zipfile

import pytest

from vlm.config import DataConfig, SourceConfig, SplitConfig
from vlm.data.sources import check, read
from vlm.errors import Unusable

TURNS = [{"from": "human", "value": "Is it big?"}, {"from": "gpt", "value": "yes"}]


@pytest.fixture
def source(tmp_path):
    """Return a function that makes a corpus of LLaVA records beside files and folders to point at."""
    (tmp_path / "images").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "other.json").write_text("{}")

    def make(count: int = 3, **settings) -> SourceConfig:
        records = [{"id": str(number), "conversations": TURNS} for number in range(count)]
        (tmp_path / "all.json").write_text("\n".join(map(json.dumps, records)))
        places = {key: str(tmp_path / settings[key]) for key in ("path", "images", "annotations") if key in settings}
        return SourceConfig(**{"path": str(tmp_path / "all.json"), "name": "mine"} | settings | places)

    return make


def ids(source: SourceConfig, seed: int = 0) -> list[str]:
    return [row.id for row in read(source, seed)]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"path": "none.json"}, r"mine: .*none\.json is not there"),
        ({"path": "images"}, r"images is not there"),
        ({"images": "none"}, r"the picture folder .*none is not there"),
        ({"images": "text.zip"}, r"text.zip is neither a folder nor a readable zip"),
        ({"annotations": "other.json"}, "llava takes no annotations"),
        (
            {"format": "cocoa_captions"},
            "mine: there is no format cocoa_captions: did you mean coco_captions\\? choose of llava,",
        ),
        ({"format": "vqa", "images": "images"}, "vqa needs annotations="),
        ({"format": "vqa", "images": "images", "annotations": "none"}, "annotations .*none are not there"),
        ({"format": "pope"}, "pope needs images="),
        ({"format": "scienceqa", "split": "train"}, "split= and annotations="),
        ({"format": "scienceqa", "annotations": "other.json"}, "split= and annotations="),
        ({"format": "tars", "path": "empty"}, r"empty holds no \*.tar"),
        ({"format": "parquet", "path": "empty"}, r"empty holds no \*.parquet"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_read(source, settings, fault):
    with pytest.raises(Unusable, match=fault) as found:
        check(source(**settings))
    assert "\n" not in str(found.value)
    with pytest.raises(Unusable, match=fault):
        list(read(source(**settings)))


def test_parquet_without_its_library_names_the_extra(source, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unusable, match=r"parquet needs pyarrow: run  pip install -e '.\[parquet\]'"):
        check(source(format="parquet"))


def test_a_demo_that_was_not_drawn_says_how_to_draw_it():
    with pytest.raises(Unusable, match="run  python -m vlm.demo  first"):
        check(SourceConfig(path="demo/none/all.json"))


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (2, 2), (9, 3), (None, 3)])
def test_only_the_first_rows_are_read_up_to_the_limit(source, limit, count):
    assert len(ids(source(limit=limit))) == count


def test_a_limit_reads_no_further(source, tmp_path):
    cut = source(limit=2)
    (tmp_path / "all.json").write_text((tmp_path / "all.json").read_text()[:-3])
    assert ids(cut) == ["0", "1"]


def test_a_fraction_is_chosen_by_the_seed_and_not_by_the_picture(source):
    half = source(400, fraction=0.5)
    chosen = ids(half)
    assert 150 < len(chosen) < 250
    assert chosen == ids(half) == sorted(chosen, key=int)
    assert chosen != ids(half, seed=1)
    assert set(ids(source(400, fraction=0.2))) < set(chosen)


def test_a_source_is_read_as_often_as_it_is_repeated(source):
    rows = list(read(source(limit=2, repeat=3)))
    assert [(row.id, row.copy) for row in rows] == [(str(n), copy) for copy in range(3) for n in range(2)]
    half = source(100, fraction=0.5, repeat=2)
    assert ids(half) == 2 * ids(source(100, fraction=0.5))


@pytest.mark.parametrize("wrong", [{"fraction": 0.0}, {"fraction": 1.5}, {"repeat": 0}, {"limit": -1}])
def test_a_share_that_cannot_be_is_refused(wrong):
    with pytest.raises(Unusable, match="data source a"):
        SourceConfig(path="a.json", **wrong)


def test_an_unreadable_zip_is_one_line(source, tmp_path):
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as made:
        made.writestr("a.jpg", b"a" * 1000)
    data = bytearray((tmp_path / "cut.zip").read_bytes())
    at = data.index(b"PK\1\2")
    data[at : at + 4] = b"ruin"
    (tmp_path / "cut.zip").write_bytes(data)
    with pytest.raises(Unusable, match="data source mine cannot be read") as fault:
        list(read(source(images="cut.zip")))
    assert "\n" not in str(fault.value)


def test_a_system_prompt_begins_each_conversation_that_has_none(tmp_path):
    own = [{"from": "system", "value": "Be brief."}, *TURNS]
    records = [{"id": str(number), "conversations": turns} for number, turns in enumerate((TURNS, own))]
    (tmp_path / "all.json").write_text(json.dumps(records))
    rows = list(read(SourceConfig(path=str(tmp_path / "all.json"), system="你是一个助手。")))
    assert [[(turn.role, turn.text) for turn in row.sample.turns[:2]] for row in rows] == [
        [("system", "你是一个助手。"), ("user", "Is it big?")],
        [("system", "Be brief."), ("user", "Is it big?")],
    ]


def test_a_limit_of_all_data_is_that_of_every_source_without_its_own(source):
    split = SplitConfig(sources=[source(9), source(9, limit=5)], held_out=[source(9)])
    data = DataConfig(finetune=split, limit=2)
    assert [len(ids(one)) for one in (*data.finetune.sources, *data.finetune.held_out)] == [2, 5, 2]
