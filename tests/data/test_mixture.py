from dataclasses import replace

import pytest

from vlm.config import SourceConfig, SplitConfig
from vlm.data.images import InFolder
from vlm.data.mixture import is_held_out, nesting, parts
from vlm.data.samples import Reject, Row, Sample
from vlm.data.sources import read

FRACTION = 0.4


def row(*names: str, root: str = "x") -> Row:
    return Row("mine", "1", Sample("1", "mine", (), tuple(InFolder(root, name) for name in names)))


def rows_of(split: SplitConfig, seed: int = 0) -> tuple[list[Row], list[Row]]:
    found = parts("finetune", split, seed)
    return list(found["finetune"]), list(found["finetune_held_out"])


def test_any_row_is_on_one_side_of_the_held_out_split(corpus, record):
    source = corpus([record("half \ud83d", "\ud83d.png"), record("zero", "a\0.png"), [1], record("text")])
    for one in read(replace(source, name="mine")):
        sides = {fraction: is_held_out(one, 0, fraction) for fraction in (0.0, 0.5, 1.0)}
        assert (sides[0.0], sides[1.0]) == (False, True)
        assert sides[0.5] is is_held_out(one, 0, 0.5)


def test_no_picture_is_on_both_sides_of_samples_with_several(corpus, record):
    records = [record(n, *(f"{(n * k) % 17}.png" for k in (1, 2, 3)[: 1 + n % 3])) for n in range(200)]
    split = SplitConfig(sources=[corpus(records)], held_out_fraction=FRACTION)
    train, held_out = rows_of(split)
    left_out = [one for one in train if isinstance(one.sample, Reject)]
    sides = [
        {image.name for one in side if one not in left_out for image in one.sample.images} for side in (train, held_out)
    ]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert {one.sample.code for one in left_out} == {"both_sides"}
    assert len(train) + len(held_out) == 200
    for one in left_out:
        of_this = {f"{(int(one.id) * k) % 17}.png" for k in (1, 2, 3)[: 1 + int(one.id) % 3]}
        assert len({is_held_out(row(name), 0, FRACTION) for name in of_this}) == 2


def test_a_picture_is_known_by_its_name_however_it_is_spelt_and_wherever_it_lies():
    for number in range(30):
        sides = [
            is_held_out(row(name, root=root), 0, FRACTION)
            for name in (f"b/{number}.jpg", f"a/../b/{number}.jpg", f"./b//{number}.jpg")
            for root in ("/one", "other")
        ]
        assert len({*sides}) == 1
    assert is_held_out(row("a.jpg"), 0, FRACTION) is is_held_out(row("a.jpg", "./a.jpg"), 0, FRACTION)


def test_a_folder_inside_another_corpus_holds_the_same_pictures():
    sources = [
        SourceConfig(path="a.json", images="coco/train2017"),
        SourceConfig(path="b.json", images="./coco/"),
        SourceConfig(path="c.json", images="coconut"),
        SourceConfig(path="d.json"),
        SourceConfig(path="e.json", images="coco/val2017.zip"),
    ]
    folders = nesting(sources)
    assert folders == {"a": "train2017", "e": "val2017"}
    for number in range(30):
        inner, outer = row(f"{number}.jpg"), row(f"train2017/{number}.jpg")
        assert is_held_out(inner, 0, FRACTION, folders["a"]) is is_held_out(outer, 0, FRACTION)


def test_another_seed_holds_out_other_pictures(corpus, record):
    split = SplitConfig(sources=[corpus([record(n, f"{n}.png") for n in range(50)])], held_out_fraction=FRACTION)
    ids = [{one.id for one in rows_of(split, seed)[1]} for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_rows_that_cannot_be_read_are_counted_on_one_side(corpus, record):
    split = SplitConfig(sources=[corpus([[1], {"id": "x"}, record("y")])], held_out_fraction=FRACTION)
    train, held_out = rows_of(split)
    assert len(train) + len(held_out) == 3


@pytest.mark.parametrize(
    ("held_out", "fraction", "names"), [(0, 0, {"f"}), (1, 0, {"f", "f_held_out"}), (0, 0.1, {"f", "f_held_out"})]
)
def test_only_the_parts_that_are_asked_for_are_made(corpus, record, held_out, fraction, names):
    source = corpus([record("x")])
    split = SplitConfig(sources=[source], held_out=[source] * held_out, held_out_fraction=fraction)
    assert set(parts("f", split, 0)) == names
