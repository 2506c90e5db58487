"""The gate at the end of a training: what was exported computes what was trained.

Training leaves a probe: a text around a picture, drawn from a fixed seed, with the logits of its own forward pass. A
fresh process, with transformers and PEFT alone, loads the exported folder and answers the same; so it does with the
base and the adapter folder: `python -m vlm.model.verify PROBE ANSWER MODEL [BASE ADAPTER [nf4]]`.

Differences are the largest one as a share of the largest logit; for adapters `merged = base + adapter` as well.

    float32                       1e-5   equal sums may be added in another order
    bfloat16, trained or stored   5e-2   each layer rounds to 8 bits, and a merged weight is rounded once more

QLoRA trains on a base with the errors of NF4, which the merged model has not. So training is held against NF4 base +
adapter (5e-2: NF4 layers compute in bfloat16), the merged model against unquantised base + adapter, and the merged
model against training by what NF4 alone does to the base: 4 times the difference between base and NF4 base.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from vlm import ranks
from vlm.errors import Unusable, require_success
from vlm.model.export import stored_dtype
from vlm.model.forward import PackedLoss
from vlm.model.quantise import quantise

PROBE = "probe.safetensors"
WORDS = 12  # before the picture and after it
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
QUANTISED = 4.0  # times what NF4 does to the base


@torch.no_grad()
def write_probe(loss: PackedLoss, path: Path) -> None:
    """Run a trained model on the probe and leave question and logits in `path`; every rank must call."""
    was_training, weight = loss.training, next(loss.parameters())
    ids, pixels = question(loss.llava.config)
    pixels = pixels.to(weight.device, weight.dtype)
    loss.eval()
    hidden = loss.hidden_states(ids, torch.arange(ids.shape[1])[None], pixels)
    logits = loss.llava.lm_head(hidden)
    loss.train(was_training)
    if ranks.first():
        save_file({"ids": ids, "pixels": pixels.cpu(), "logits": logits.cpu().contiguous()}, path)


def question(config: LlavaConfig) -> tuple[Tensor, Tensor]:
    """Return ids (1, L) of words around one picture, and that picture (1, 3, S, S), drawn from a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(config.text_config.vocab_size - 1, (2 * WORDS,), generator=draw)
    words[words == config.image_token_id] += 1
    picture = torch.full((config.image_seq_length,), config.image_token_id)
    ids = torch.cat([words[:WORDS], picture, words[WORDS:]])[None]
    return ids, torch.randn(1, 3, *[config.vision_config.image_size] * 2, generator=draw)


def check(out: Path, base: Path, *, quantised: bool) -> dict[str, Any]:
    """Hold the model/ (and adapter/) of `out` against the probe that training left; return the differences found.

    Does its work on the first rank, and removes the probe. Raises Unusable if a difference is beyond its bound.
    """
    if not ranks.first():
        return {}
    probe = out / PROBE
    adapter = [base, out / "adapter"] if (out / "adapter").is_dir() else []
    answers = ask([probe, out / "model", *adapter], *(["nf4"] if quantised else []))
    figures = {}
    for name, (ours, theirs, bound) in comparisons(load_file(probe)["logits"], answers, stored_dtype(base)).items():
        figures[name] = difference(ours, theirs)
        print(
            f"export gate: {name} differ by {figures[name]:.2g} of the largest logit, allowed {bound:.2g}", flush=True
        )
        if not figures[name] <= bound:  # also where it is not a number
            raise Unusable(
                f"export gate: the logits of {name} differ by {figures[name]:.2g} of the largest, more than {bound:.2g}: "
                "the folder is not what was trained"
            )
    probe.unlink()
    return {"export_gate": figures}


def comparisons(
    trained: Tensor, answers: dict[str, Tensor], stored: torch.dtype
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return what is compared, by name: two logits (1, L, V) and how far they may differ."""
    coarsest = max(TOLERANCE[trained.dtype], TOLERANCE[stored])
    found = {}
    if "adapter" in answers:
        found["merged model and base + adapter"] = (answers["model"], answers["adapter"], coarsest)
    if "nf4_adapter" in answers:
        found["NF4 base + adapter and training"] = (answers["nf4_adapter"], trained, TOLERANCE[torch.bfloat16])
        coarsest = QUANTISED * difference(answers["nf4_base"], answers["base"])
    found["exported model and training"] = (answers["model"], trained, coarsest)
    return found


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest value of `theirs`."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def ask(paths: list[Path], *more: str) -> dict[str, Tensor]:
    """Start a process that answers a probe with the folders after it; return the logits, (1, L, V) each.

    Raises Unusable with the last line of its complaint if it fails, Hindered if it is killed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "answer.safetensors"
        command = [sys.executable, "-m", "vlm.model.verify", str(paths[0]), str(out), *map(str, paths[1:]), *more]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # training's, so that sums have its order
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
        require_success(done, f"export gate: a fresh process cannot load {paths[1]}")
        return load_file(out)


def answer(probe: Path, model: Path, base: Path | None = None, adapter: Path | None = None, nf4: str = "") -> dict:
    """Return the logits on the probe's question of a model folder, and of a base with its adapter, one at a time."""
    asked = load_file(probe)
    found = {"model": _logits(_opened(model, asked), asked)}
    if base is not None:
        found["adapter"] = _logits(_opened(base, asked, adapter), asked)
    if nf4:
        found["nf4_adapter"] = _logits(_opened(base, asked, adapter, nf4=True), asked)
        found["nf4_base"] = _logits(_opened(base, asked, nf4=True), asked)
        found["base"] = _logits(_opened(base, asked), asked)
    return found


@torch.no_grad()
def _logits(llava: nn.Module, asked: dict[str, Tensor]) -> Tensor:
    ids = asked["ids"]
    seen = llava.eval()(input_ids=ids, pixel_values=asked["pixels"], attention_mask=torch.ones_like(ids))
    return seen.logits.contiguous()


def _opened(folder: Path, asked: dict[str, Tensor], adapter: Path | None = None, *, nf4: bool = False) -> nn.Module:
    dtype = asked["logits"].dtype
    llava = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=dtype)
    if nf4:
        quantise(llava, torch.device("cpu"))
    if adapter is None:
        return llava
    from peft import PeftModel

    return PeftModel.from_pretrained(llava, adapter)


if __name__ == "__main__":
    given, written, *rest = sys.argv[1:]
    save_file(answer(Path(given), *map(Path, rest[:3]), *rest[3:]), written)
