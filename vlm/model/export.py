"""Model folders: weights in one set of files for each part, so that what did not change is linked, not copied.

The names inside are those of the published LLaVA folders (vision_tower.vision_model.…, language_model.model.…),
which transformers, vLLM and others read.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

PARTS = ("vision_tower", "multi_modal_projector", "language_model")
INDEX = "model.safetensors.index.json"
MAX_FILE_BYTES = 5 * 10**9


def save_weights(model: PreTrainedModel, out: Path, dtype: torch.dtype, parts: tuple[str, ...] = PARTS) -> None:
    """Write the weights of `parts` in `dtype`; parts already in the folder's index keep their files."""
    index_path = out / INDEX
    weight_map = json.loads(index_path.read_text())["weight_map"] if index_path.is_file() else {}
    weights = published(model)
    for part in parts:
        names = [name for name in weights if name.startswith(part + ".")]
        for number, group in enumerate(files_of(names, weights, dtype), start=1):
            file = f"model-{part}-{number:05d}.safetensors"
            tensors = {name: weights[name].detach().to("cpu", dtype).contiguous() for name in group}
            _replace(out / file, tensors)
            weight_map |= dict.fromkeys(group, file)
    write_index(out, weight_map)


def write_index(out: Path, weight_map: dict[str, str]) -> None:
    """Write which file of `out` holds which weight."""
    sizes = {file: (out / file).stat().st_size for file in set(weight_map.values())}
    total = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
    (out / INDEX).unlink(missing_ok=True)  # it may be a link to the base's
    (out / INDEX).write_text(json.dumps(total, indent=1))


def link_folder(base: Path, out: Path) -> None:
    """Begin a model folder as another one: weights by hard link (copies across disks), small files copied."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(base.iterdir()):
        target = out / file.name
        target.unlink(missing_ok=True)
        if file.suffix != ".safetensors":
            shutil.copyfile(file, target)
            continue
        try:
            os.link(file, target)
        except OSError:
            shutil.copyfile(file, target)


def published(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights (of a model on the meta device, their shapes) under published names, tied ones once."""
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    state = revert_weight_conversion(model, state)
    return {re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", k): v for k, v in state.items()}


def files_of(names: list[str], weights: dict[str, Tensor], dtype: torch.dtype) -> Iterator[list[str]]:
    """Split the names of a part into those of one file each, in order."""
    group: list[str] = []
    size = 0
    for name in names:
        bytes_of_it = weights[name].numel() * dtype.itemsize
        if group and size + bytes_of_it > MAX_FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += bytes_of_it
    if group:
        yield group


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the type that a folder's weights are stored in."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    name, file = next(iter(weight_map.items()))
    with safe_open(folder / file, "pt") as weights:
        return weights.get_tensor(name).dtype


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a weight file without touching what a link of its name points to."""
    waiting = path.with_suffix(".tmp")
    save_file(tensors, waiting, metadata={"format": "pt"})
    waiting.chmod(0o666 & ~_umask())  # safetensors leaves its files to their owner alone
    waiting.rename(path)
