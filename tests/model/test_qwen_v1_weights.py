import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.errors import Unusable
from vlm.model import qwen_v1_weights
from vlm.model.qwen_v1_weights import Piece, find_files, plan_cuts, widest_dtype, write_cuts

LAYOUT = {
    "fused": Piece((6, 2), ("first", "second", "third")),
    "bias": Piece((6,), ("first.bias", "second.bias", "third.bias")),
    "wide": Piece((5, 3), ("renamed",)),
}
BUFFER = re.compile(r"\.buffer$")
ONE, TWO = "model-1.safetensors", "model-2.safetensors"
INDEX = "model.safetensors.index.json"


def stored() -> dict[str, torch.Tensor]:
    """Tensors in which no two numbers are equal."""
    numbers = iter(torch.arange(1000.0).split(100))
    return {
        name: next(numbers)[: torch.Size(piece.shape).numel()].reshape(piece.shape) for name, piece in LAYOUT.items()
    }


@dataclass
class Source:
    """A folder of two weight files and their index, and a way to change a file."""

    folder: Path

    def rewrite(self, file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, self.folder / file)

    def keep_bytes(self, file: str, end: int) -> None:
        path = self.folder / file
        path.write_bytes(path.read_bytes()[:end])

    def index(self, text: str) -> None:
        (self.folder / INDEX).write_text(text)

    def as_pickle(self, content: object) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        torch.save(content, self.folder / "pytorch_model.bin")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    made = Source(tmp_path / "source")
    tensors = stored()
    made.rewrite(ONE, {"wide": tensors.pop("wide"), "rotary.buffer": torch.ones(3)})
    made.rewrite(TWO, tensors)
    made.index(json.dumps({"weight_map": {"wide": ONE, "fused": TWO, "bias": TWO}}))
    return made


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def recut(folder, out, allow_pickle=False):
    """Re-cut a folder; return what was written, by name."""
    write_cuts(plan_cuts(find_files(folder, allow_pickle), LAYOUT, BUFFER), out, "test")
    return {name: weight for file in sorted(out.glob("*.safetensors")) for name, weight in load_file(file).items()}


def expected() -> dict[str, torch.Tensor]:
    before = stored()
    return {
        "renamed": before["wide"],
        **dict(zip(LAYOUT["fused"].names, before["fused"].split(2), strict=True)),
        **dict(zip(LAYOUT["bias"].names, before["bias"].split(2), strict=True)),
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_fused_tensors_are_cut_and_others_renamed(source, out):
    assert same(recut(source.folder, out), expected())


@pytest.mark.parametrize("limit", [1, 16, 40, 70])
def test_files_stay_under_the_limit_and_the_index_names_each_tensor(source, out, monkeypatch, limit):
    monkeypatch.setattr(qwen_v1_weights, "MAX_FILE_BYTES", limit)
    assert same(recut(source.folder, out), expected())
    files = {file.name: load_file(file) for file in out.glob("*.safetensors")}
    assert len(files) > 1
    for tensors in files.values():
        assert len(tensors) == 1 or sum(weight.nbytes for weight in tensors.values()) <= limit
    index = json.loads((out / INDEX).read_text())
    assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in expected().values())


def test_the_weights_of_a_file_begin_at_a_multiple_of_eight_bytes(source, out):
    recut(source.folder, out)
    written = next(out.glob("*.safetensors")).read_bytes()
    assert int.from_bytes(written[:8], "little") % 8 == 0


def test_types_are_kept_and_the_widest_holds_them_all(source, out):
    source.rewrite(ONE, {"wide": stored()["wide"].bfloat16()})
    source.rewrite(TWO, {name: weight.half() for name, weight in stored().items() if name != "wide"})
    written = recut(source.folder, out)
    assert {name for name, weight in written.items() if weight.dtype == torch.bfloat16} == {"renamed"}
    assert written["third"].dtype == torch.float16
    cuts = plan_cuts(find_files(source.folder, False), LAYOUT, BUFFER)
    assert widest_dtype(cuts) == torch.float32
    assert widest_dtype(cuts[:1]) == torch.bfloat16


def test_one_file_needs_no_index(source, out):
    (source.folder / INDEX).unlink()
    source.rewrite("model.safetensors", stored())
    assert same(recut(source.folder, out), expected())


@pytest.mark.parametrize("zipped", [True, False], ids=["mapped", "of the old format"])
def test_pickles_are_read_as_data_if_allowed(source, out, zipped):
    source.as_pickle({})
    torch.save(stored(), source.folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Unusable, match="pickles only.*--allow-pickle"):
        recut(source.folder, out)
    assert same(recut(source.folder, out, allow_pickle=True), expected())


def test_safetensors_are_preferred_to_pickles(source, out):
    (source.folder / "pytorch_model.bin").write_text("no pickle")
    assert same(recut(source.folder, out, allow_pickle=True), expected())


class Trap:
    def __reduce__(self):
        return (print, ("code of the checkpoint was run",))


@pytest.mark.parametrize("content", [{"wide": Trap()}, ["no weights"], {"wide": 3}])
def test_a_pickle_that_is_not_weights_alone_is_refused_unrun(source, out, capsys, content):
    source.as_pickle(content)
    with pytest.raises(Unusable, match="pytorch_model.bin cannot be read: ") as fault:
        recut(source.folder, out, allow_pickle=True)
    assert "\n" not in str(fault.value)
    assert "was run" not in capsys.readouterr().out


FAULTS = {
    "missing": (lambda it: it.rewrite(ONE, {}), "source: wide is in none of the files; 1 missing in all"),
    "end cut off": (lambda it: it.keep_bytes(TWO, -1), f"{TWO} cannot be read: "),
    "header cut off": (lambda it: it.keep_bytes(ONE, 40), f"{ONE} cannot be read: "),
    "empty": (lambda it: it.keep_bytes(ONE, 0), f"{ONE} cannot be read: "),
    "no file": (lambda it: (it.folder / TWO).unlink(), f"{TWO} is not there, though {INDEX} names it"),
    "foreign": (lambda it: it.rewrite(ONE, {"a": torch.ones(1)}), f"{ONE}: a is no weight of the language model"),
    "twice": (lambda it: it.rewrite(ONE, stored()), f"{TWO}: .* is in another file as well"),
    "shape": (lambda it: it.rewrite(ONE, {"wide": torch.ones(3, 5)}), r"wide has the shape \(3, 5\), .* for \(5, 3\)"),
    "integers": (lambda it: it.rewrite(ONE, {"wide": torch.ones(5, 3).int()}), "wide is stored as I32: only F32, F16"),
    "no index": (lambda it: (it.folder / INDEX).unlink(), "source holds no weights: "),
    "no json": (lambda it: it.index("{"), "is no index of weight files"),
    "no map": (lambda it: it.index("[]"), "is no index of weight files"),
    "outside": (lambda it: it.index('{"weight_map": {"wide": "../x"}}'), "is no index of weight files"),
    "no files": (lambda it: it.index('{"weight_map": {}}'), "names no file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_refused_in_one_line_before_anything_is_written(source, out, fault):
    damage, line = FAULTS[fault]
    damage(source)
    with pytest.raises(Unusable, match=line) as refusal:
        recut(source.folder, out)
    assert "\n" not in str(refusal.value)
    assert not list(out.iterdir())
