import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.errors import Unusable
from vlm.model.weights import weights_of, write

TENSORS = {
    "a": torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),
    "b": torch.randn(5, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "c": torch.tensor(2.5),
    "d": torch.arange(3),
}


@pytest.fixture
def folder(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def fault_of(folder, allow_pickle: bool = False) -> str:
    with pytest.raises(Unusable) as fault:
        weights_of(folder, "tower: here", allow_pickle=allow_pickle)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_tensors_are_read_as_they_were_saved(folder):
    found = weights_of(folder, "here", allow_pickle=False)
    assert {name: (stored.dtype, stored.shape) for name, stored in found.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()
    }
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in TENSORS.items())


def test_a_type_is_converted_piece_by_piece_as_at_once(folder, monkeypatch):
    monkeypatch.setattr("vlm.model.weights.PIECE", 4)
    found = weights_of(folder, "here", allow_pickle=False)
    for name in "abc":
        for dtype in (torch.bfloat16, torch.float32):
            assert torch.equal(found[name].read(dtype), TENSORS[name].to(dtype))


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    floats = {name: TENSORS[name] for name in "abc"}
    shapes = {name: tensor.shape for name, tensor in floats.items()}
    write(tmp_path / "model.safetensors", shapes, torch.bfloat16, floats.__getitem__)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == floats.keys()
    assert all(torch.equal(read[name], tensor.bfloat16()) for name, tensor in floats.items())
    assert not list(tmp_path.glob("*.tmp"))


def test_a_tensor_of_another_shape_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="a has the shape"):
        write(tmp_path / "x.safetensors", {"a": torch.Size([2])}, torch.float32, lambda _: torch.zeros(3))
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_file_that_was_cut_short_is_refused(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors" in fault_of(folder)
    assert "cut short" in fault_of(folder)


def test_a_header_that_is_no_json_is_refused(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert "is damaged" in fault_of(folder)


def test_a_file_that_the_index_names_and_is_not_there_is_refused(folder):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-1.safetensors" in fault_of(folder)


def test_a_quantized_checkpoint_is_refused(tmp_path):
    save_file({"a": torch.zeros(4, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    assert "stored as U8" in fault_of(tmp_path)


def test_pickles_are_refused_unless_they_are_allowed(tmp_path):
    assert "no model.safetensors" in fault_of(tmp_path)
    assert "no model.safetensors" in fault_of(tmp_path, allow_pickle=True)
    torch.save({"a": TENSORS["a"], "step": 3}, tmp_path / "pytorch_model.bin")
    assert "only pickled weights" in fault_of(tmp_path)
    assert "model.allow_pickle=true" in fault_of(tmp_path)
    found = weights_of(tmp_path, "here", allow_pickle=True)
    assert found.keys() == {"a"}
    assert torch.equal(found["a"].read(), TENSORS["a"])
    assert torch.equal(found["a"].read(torch.bfloat16), TENSORS["a"].bfloat16())


def test_safetensors_are_preferred_to_pickles(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle at all")
    assert weights_of(folder, "here", allow_pickle=True).keys() == TENSORS.keys()


class Harm:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("code of a stranger ran",))


@pytest.mark.parametrize("held", [{"a": Harm()}, b"damaged"])
def test_a_pickle_of_more_than_tensors_is_refused_and_runs_nothing(tmp_path, capsys, held):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(held) if isinstance(held, bytes) else torch.save(held, path)
    assert "cannot be read as tensors alone" in fault_of(tmp_path, allow_pickle=True)
    assert "stranger" not in capsys.readouterr().out
