"""Which saved model a name means: a Llava folder, a hub id, what stages 03 and 04 leave, a checkpoint, an adapter.

config.json          a Llava folder of anybody's, or this pipeline's
model/config.json    a stage's artifact
weights.safetensors  a checkpoint of a training, on the model folder that the training began with
adapter_config.json  a PEFT adapter, on its base
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from vlm.errors import Unusable
from vlm.model.hub import fetch, locate

CHECKPOINT, ADAPTER = "weights.safetensors", "adapter_config.json"
BASES = {"03_pretrain": "01_assemble", "04_finetune": "03_pretrain"}  # the stage a training begins with
SMALL = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json")
SMALL += ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", ADAPTER)
SAMPLED = 4096  # bytes of each tensor that a fingerprint reads


@dataclass(frozen=True)
class Saved:
    """A saved model: a Llava folder, and what lies on top of it."""

    name: str  # as the user gave it
    folder: Path  # config, weights, tokenizer, processor
    checkpoint: Path | None = None
    adapter: Path | None = None

    @property
    def fingerprint(self) -> str:
        """12 hex digits over the small files and a piece of every tensor; the whole weights would take minutes."""
        digest = hashlib.sha256()
        for folder in filter(None, (self.folder, self.adapter, self.checkpoint)):
            for name in SMALL:
                if (folder / name).is_file():
                    digest.update(name.encode() + (folder / name).read_bytes())
        files = sorted(self.folder.glob("*.safetensors"))
        files += [self.checkpoint / CHECKPOINT] if self.checkpoint else []
        files += sorted(self.adapter.glob("*.safetensors")) if self.adapter else []
        for file in files:
            digest.update(_pieces(file))
        return digest.hexdigest()[:12]


def find(name: str, base: str | None = None) -> Saved:
    """Return the saved model that `name` means; `base` is the model folder below a checkpoint or an adapter.

    Raises Unusable if it is none, or lies on a base that is not found.
    """
    path = Path(name)
    if (path / CHECKPOINT).is_file():
        return Saved(name, _base_of(path, base), checkpoint=path)
    if (path / ADAPTER).is_file():
        return Saved(name, _base_of(path, base), adapter=path)
    if base is not None:
        raise Unusable(f"eval.base is given, but {name} is neither an adapter nor a checkpoint")
    if (path / "model" / "config.json").is_file():
        return Saved(name, _checked(path / "model"))
    if path.is_dir() and (steps := sorted(path.glob("checkpoints/step_*[0-9]"))):
        raise Unusable(f"{name} is not whole yet: choose one of its checkpoints, like eval.model={steps[-1]}")
    if path.name in BASES and not path.exists():
        raise Unusable(f"{name} is not there: run  python stages/{path.name}.py  first")
    locate(name, "eval.model")
    return Saved(name, _checked(fetch(name, "eval.model", weights=True)))


def _checked(folder: Path) -> Path:
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "llava":
        raise Unusable(f"{folder} is a model of the kind {kind}, not llava")
    return folder


def _base_of(path: Path, base: str | None) -> Path:
    """Return the model folder that a checkpoint or an adapter lies on: given, named in it, or a stage before."""
    if base is not None:
        return find(base).folder
    named = (
        json.loads((path / ADAPTER).read_text()).get("base_model_name_or_path") if (path / ADAPTER).is_file() else ""
    )
    if named:
        return find(named).folder
    for folder in path.resolve().parents:
        stage = folder.name.removesuffix(".partial")
        if stage in BASES and (found := folder.parent / BASES[stage] / "model").is_dir():
            return _checked(found)
    raise Unusable(f"{path} does not say which model it belongs to: give it with eval.base=")


def _pieces(file: Path) -> bytes:
    """Return a hash over the names, shapes and first bytes of a file's tensors."""
    digest = hashlib.sha256()
    header = _header_of(file)
    with file.open("rb") as handle:
        for name, (start, size) in header.items():
            handle.seek(start)
            digest.update(name.encode() + str(size).encode() + handle.read(min(size, SAMPLED)))
    return digest.digest()


def _header_of(file: Path) -> dict[str, tuple[int, int]]:
    """Return where each tensor of a safetensors file begins and how long it is, bytes."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    return {
        name: (8 + length + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in sorted(header.items())
    }
