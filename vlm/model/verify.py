"""The gate at the end of a training: what was exported computes what was trained.

Training leaves a probe: a text around a picture, drawn from a fixed seed, with the logits of its own forward pass. A
fresh process, with transformers and PEFT alone, loads the exported folder (and the adapter folder onto the base) and
answers the same: `python -m vlm.model.verify PROBE ANSWER MODEL [BASE ADAPTER]`.

Differences are the largest one as a share of the largest logit:

    float32                          1e-5   equal sums may be added in another order
    bfloat16, trained or stored      5e-2   each layer rounds to 8 bits, and a merged weight is rounded once more
    training's of an NF4 base        0.5    the merged model has not the errors of NF4, which training saw
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from vlm import ranks
from vlm.errors import Unusable
from vlm.model.export import stored_dtype
from vlm.model.forward import PackedLoss

PROBE = "probe.safetensors"
WORDS = 12  # before the picture and after it
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
QUANTISED = 0.5


@torch.no_grad()
def write_probe(loss: PackedLoss, path: Path) -> None:
    """Run a trained model on the probe and leave question and logits in `path`; every rank must call."""
    was_training, weight = loss.training, next(loss.parameters())
    ids, pixels = question(loss.llava.config)
    ids, pixels = ids.to(weight.device), pixels.to(weight.device, weight.dtype)
    loss.eval()
    hidden = loss.hidden_states(ids, torch.arange(ids.shape[1], device=ids.device)[None], pixels)
    logits = loss.llava.lm_head(hidden)
    loss.train(was_training)
    if ranks.first():
        save_file({"ids": ids.cpu(), "pixels": pixels.cpu(), "logits": logits.cpu().contiguous()}, path)


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
    trained, bound = bounds(probe, base, quantised=quantised)
    answers = ask(probe, [out / "model", *adapter])
    figures = {"model_to_training": difference(answers["model"], trained["logits"])}
    compared = {"model_to_training": ("the exported model", "training's", bound["training"])}
    if adapter:
        figures["model_to_adapter"] = difference(answers["model"], answers["adapter"])
        compared["model_to_adapter"] = ("the merged model", "base and adapter's", bound["adapter"])
    for name, (ours, theirs, limit) in compared.items():
        if not figures[name] <= limit:  # also where it is not a number
            raise Unusable(
                f"export gate: logits of {ours} differ from {theirs} by {figures[name]:.2g} of the largest, "
                f"more than {limit:g}: the folder is not what was trained"
            )
    if ranks.first():
        print(", ".join(f"{name} {value:.2g}" for name, value in figures.items()), flush=True)
    probe.unlink()
    return {"export_gate": figures}


def bounds(probe: Path, base: Path, *, quantised: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return what training left, and the bounds against training's logits and against base and adapter's."""
    trained = load_file(probe)
    coarsest = max(TOLERANCE[trained["logits"].dtype], TOLERANCE[stored_dtype(base)])
    return trained, {"training": QUANTISED if quantised else coarsest, "adapter": coarsest}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest value of `theirs`."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def ask(probe: Path, folders: list[Path]) -> dict[str, Tensor]:
    """Start a process that answers the probe with a model folder, and a base with an adapter; return the logits.

    Raises Unusable with the last line of its complaint if it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.safetensors"
        command = [sys.executable, "-m", "vlm.model.verify", str(probe), str(answer), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unusable(f"export gate: a fresh process cannot load {folders[0]}: {reason}")
        return load_file(answer)


@torch.no_grad()
def answer(probe: Path, out: Path, model: Path, base: Path | None = None, adapter: Path | None = None) -> None:
    """Write the logits of a model folder, and of a base with its adapter, on the probe's question."""
    asked = load_file(probe)

    def logits_of(llava: torch.nn.Module) -> Tensor:
        ids = asked["ids"]
        return llava.eval()(input_ids=ids, pixel_values=asked["pixels"], attention_mask=torch.ones_like(ids)).logits

    def opened(folder: Path) -> LlavaForConditionalGeneration:
        dtype = asked["logits"].dtype
        return LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=dtype)

    found = {"model": logits_of(opened(model))}
    if base is not None:
        from peft import PeftModel

        found["adapter"] = logits_of(PeftModel.from_pretrained(opened(base), adapter))
    save_file({name: logits.contiguous() for name, logits in found.items()}, out)


if __name__ == "__main__":
    answer(*map(Path, sys.argv[1:]))
