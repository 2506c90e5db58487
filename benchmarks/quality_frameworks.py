"""The frameworks of the training rows on the demo, each in an environment of its own and by its own trainer.

They get its conversations in the words of our chat template (`benchmarks/peers`), every answer to be learnt.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.conversations import messages_of, written
from benchmarks.quality_trainer import BATCH, Recipe
from benchmarks.training import start

FRAMEWORKS = {  # by their names among the contestants of the training rows
    "trl": "TRL SFTTrainer",
    "llamafactory": "LLaMA-Factory",
    "neat_packing": "LLaMA-Factory, neat_packing",
    "swift": "ms-swift",
}
PACK_TOKENS = BATCH * 104  # a batch of the demo's conversations, which are 103 tokens on average


def train(name: str, recipe: Recipe, rate: float, base: Path, corpus: Path, count: int, seed: int, out: Path) -> float:
    """Train on `count` conversations and leave the merged model in `out`/model; return the seconds of all steps.

    The first, in which the model is loaded and the list is read, counts as the mean of the others.
    Raises: Missing or Failed, with the reason.
    """
    out.mkdir(parents=True, exist_ok=True)
    listed = out / "listed.json"
    listed.write_text(json.dumps(records(base, corpus, count)))
    one = start(FRAMEWORKS[name], asked(recipe, rate, base, listed, seed) | {"save": str(out / "model")}, out)
    steps = []
    try:
        while "losses" not in (told := one.turn()):
            steps.append(told["seconds"])
    finally:
        one.kill()
    return statistics.mean(steps[1:]) * len(steps)


def asked(recipe: Recipe, rate: float, base: Path, listed: Path, seed: int) -> dict[str, Any]:
    """Return what a contestant of benchmarks/training.py is asked to do: one pass over the list, nothing recomputed."""
    return {
        "model": str(base),
        "listed": str(listed),
        "strategy": "lora",
        "samples": BATCH,
        "rows": BATCH,
        "packs": 1,
        "pack_tokens": PACK_TOKENS,
        "steps": 1,
        "rate": rate,
        "lora": {"rank": recipe.rank, "alpha": recipe.alpha, "targets": recipe.targets},
        "recompute": False,
        "bfloat16": False,
        "workers": 1,
        "seed": seed,
    }


def records(base: Path, corpus: Path, count: int) -> list[dict[str, Any]]:
    """Return the demo's conversations over and over until there are `count`, as `benchmarks/peers` read them."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = [
        {"messages": written(tokenizer, messages_of(record)), "images": [str(corpus / "images" / record["image"])]}
        for record in json.loads((corpus / "finetune.json").read_text())
    ]
    return [found[at % len(found)] for at in range(count)]
