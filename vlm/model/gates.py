"""The gates at the end of stage 01: what an assembled folder must do before anybody trains it.

Each raises Unusable with one line, or returns the figure that artifact.json records. The models are loaded one
after another, so that no more than one is in memory.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from vlm.errors import Unusable
from vlm.model import fresh
from vlm.model.assemble import Plan, grown
from vlm.model.forward import tower_features
from vlm.model.hub import load
from vlm.model.weights import weights_of

TEXTS = (
    "What colour is the square? Don't guess: 1,024 or 3.14",
    "这张图片里有什么？一只灰鹅站在草地上。",
    "naïve café 🙂🦆 👩‍🚀 ½ €",
    'def f(x: int) -> str:\n    return f"{x}" if x < 3 else None  # <b>\n',
)
TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
}  # of the largest value; equal sums may be added in another order
NEW_TOKENS = 4


def check(ready: Plan, folder: Path) -> dict[str, Any]:
    """Put the assembled `folder` through every gate; return their figures.

    Raises Unusable at the first that fails.
    """
    _say("the processor, in a fresh process")
    figures = processor_gate(ready, fresh.ask([folder], texts_of(ready))[0])
    _say("every weight against its source")
    figures |= weights_gate(ready, folder)
    return figures | model_gates(ready, folder)


def model_gates(ready: Plan, folder: Path) -> dict[str, Any]:
    """Run the bare models and then the assembled one; return the figures of the gates that need it to run."""
    dtype = ready.config.dtype
    _say("the logits of a text and the features of a picture against the bare models'")
    words = torch.tensor([ready.tokenizer.encode(" ".join(TEXTS), add_special_tokens=False)])
    picture = torch.rand(1, 3, *[ready.shape.image_size] * 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    bare = bare_outputs(ready, words, picture, folder)
    model = load(AutoModelForImageTextToText.from_pretrained, str(folder), "assembled model", {"dtype": dtype}).eval()
    figures = outputs_gate(ready, model, bare, words, picture)
    _say("an answer about a picture")
    return figures | answer_gate(ready, model, folder)


def texts_of(ready: Plan) -> list[str]:
    """Return mixed text: English, Chinese, emoji, code, and the tokenizer's special tokens."""
    image = ready.tokenizer.convert_ids_to_tokens(ready.image_id)
    specials = "".join(dict.fromkeys([*ready.tokenizer.all_special_tokens, image]))
    return [*TEXTS, "".join(TEXTS), specials, f"a{image}b"]


def processor_gate(ready: Plan, seen: fresh.Seen) -> dict[str, Any]:
    """Check what a fresh process saw: the class, that text comes back, and the tokens of a picture.

    A text that the language model's own tokenizer does not give back must come back just as it gives it.
    """
    if seen.processor != "LlavaProcessor":
        raise Unusable(f"gate: AutoProcessor makes a {seen.processor} of the folder, not a LlavaProcessor")
    source = AutoTokenizer.from_pretrained(ready.sources[-1].folder, local_files_only=True)
    texts = texts_of(ready)
    lossy = 0
    for text, decoded in zip(texts, seen.decoded, strict=True):
        if decoded != text:
            lossy += 1
            if decoded != source.decode(source.encode(text, add_special_tokens=False)):
                raise Unusable(f"gate: the processor turns {text[:40]!r} into {decoded[:40]!r}")
    if seen.image_tokens != ready.shape.image_tokens:
        raise Unusable(
            f"gate: the processor writes {seen.image_tokens} tokens for a picture, the tower gives "
            f"{ready.shape.image_tokens}"
        )
    if seen.picture != [1, 3, ready.shape.image_size, ready.shape.image_size]:
        raise Unusable(f"gate: the processor makes pixels of the shape {seen.picture}, not the tower's size")
    return {"texts_returned": len(texts) - lossy, "texts_returned_as_by_the_source": lossy}


def weights_gate(ready: Plan, folder: Path) -> dict[str, Any]:
    """Compare every copied weight with its source, one by one, in the stored type."""
    written = weights_of(folder, str(folder), allow_pickle=False)
    if extra := sorted(set(written) ^ set(ready.shapes)):
        raise Unusable(f"gate: the assembled folder and its config disagree about {extra[0]}")
    for name, stored in ready.copies.items():
        source = stored.read(ready.config.dtype)
        copied = written[name].read()
        if not _are_equal(copied[: len(source)] if source.ndim else copied, source):
            raise Unusable(f"gate: {name} is not what {stored.path.name} holds")
        if source.ndim and not _are_equal(grown(source, len(copied)), copied):
            raise Unusable(f"gate: the new rows of {name} are not the mean of the old ones")
    return {"weights_compared": len(ready.copies)}


def _are_equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits, whatever they mean as numbers."""
    return a.shape == b.shape and torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (a, b)))


@torch.no_grad()
def bare_outputs(ready: Plan, words: Tensor, picture: Tensor, scratch: Path) -> tuple[Tensor, Tensor]:
    """Return the logits (1, L, V) of the bare language model and the features (1, P, E) of the bare tower."""
    sources = ready.sources
    if len(sources) == 1:  # an assembled LLaVA is compared with itself before the copy
        whole = sources[0].load(picture.dtype, scratch)
        return whole(input_ids=words).logits, _selected(whole.model.vision_tower, ready, picture)
    tower, language = sources
    logits = language.load(picture.dtype, scratch)(input_ids=words).logits
    return logits, _selected(tower.load(picture.dtype, scratch), ready, picture)


def _selected(tower: torch.nn.Module, ready: Plan, picture: Tensor) -> Tensor:
    hidden = tower(picture, output_hidden_states=True).hidden_states[ready.config.vision_feature_layer]
    return hidden[:, 1:] if ready.config.vision_feature_select_strategy == "default" else hidden


@torch.no_grad()
def outputs_gate(
    ready: Plan, model: LlavaForConditionalGeneration, bare: tuple[Tensor, Tensor], words: Tensor, picture: Tensor
) -> dict[str, Any]:
    """Compare logits of a text and features of a picture with the bare models'; count a picture's tokens."""
    logits, features = bare
    ours = {
        "text_logits": (model(input_ids=words).logits[..., : ready.rows], logits),
        "tower_features": (tower_features(model, picture), features),
    }
    figures = {}
    for what, (got, wanted) in ours.items():
        if got.shape != wanted.shape:
            raise Unusable(f"gate: {what} have the shape {tuple(got.shape)}, the bare model's {tuple(wanted.shape)}")
        difference = float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max())
        if not difference <= TOLERANCE[picture.dtype]:  # also where it is not a number
            raise Unusable(
                f"gate: {what} differ from the bare model's by {difference:.2g} of their largest: "
                "the LLaVA format does not compute this model as it was made"
            )
        figures[f"{what}_difference"] = difference
    tokens = tuple(model.get_image_features(picture).pooler_output[0].shape)
    if tokens != (ready.shape.image_tokens, model.config.text_config.hidden_size):
        raise Unusable(f"gate: a picture became {tokens}, not {ready.shape.image_tokens} tokens")
    return figures


@torch.no_grad()
def answer_gate(ready: Plan, model: LlavaForConditionalGeneration, folder: Path) -> dict[str, Any]:
    """Ask about a picture: one forward pass, then a few tokens, greedily."""
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    inputs = processor(images=noise, text=f"{processor.image_token}\nWhat is this?", return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    if not model(**inputs).logits.isfinite().all():
        raise Unusable("gate: the assembled model's logits are not finite")
    written = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    new = written.shape[1] - inputs["input_ids"].shape[1]
    if not 1 <= new <= NEW_TOKENS or int(written.max()) >= model.config.text_config.vocab_size:
        raise Unusable(f"gate: asked for up to {NEW_TOKENS} tokens, the model wrote {new}")
    return {"tokens_generated": new}


def _say(what: str) -> None:
    print(f"checking {what}", flush=True)
