"""What a model learns here, beside what the frameworks of the training rows make of the same base and data.

    python -m vlm.demo && python -m benchmarks.quality

The pipeline runs by its own stages, `finetune=lora`. All others begin from the same assembled folder, with its projector as
it was drawn, and see as many samples as stages 03 and 04 together, all of them conversations. Trainer's rate is the best
of a few, by the very questions that are asked in the end: each is tried on a quarter of the samples first. TRL,
LLaMA-Factory and ms-swift get the rate that is Trainer's best with our adapters.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from benchmarks import quality_frameworks, quality_trainer
from benchmarks.environments import Missing
from benchmarks.quality_frameworks import FRAMEWORKS
from benchmarks.quality_trainer import RECIPES, Recipe
from benchmarks.timing import load
from benchmarks.turns import Failed
from vlm.config import EvalConfig, EvalRuntime, TaskConfig
from vlm.eval.run import evaluate
from vlm.pipeline.artifact import figures_of

ROOT = Path(__file__).parents[1]
STAGES = ("00_tokenizer", "01_assemble", "02_shard", "03_pretrain", "04_finetune", "05_eval")
OURS = "stages 03 and 04"
ALONE = "stage 04 alone"  # conversations alone, as all others; stage 03 takes one step that changes nothing
NOTHING_BEFORE = tuple(
    f"pretrain.{one}" for one in ("steps=1", "samples_per_step=1", "lr.projector=0", "warmup_ratio=0")
)
TRIAL = 4  # a rate is tried on one sample in so many


def run_stages(run: str, seed: int, epochs: float, *more: str) -> None:
    """Bring a run of the pipeline to its end; what is there is not done again."""
    settings = [f"run={run}", f"seed={seed}", "finetune=lora", f"finetune.epochs={epochs:g}", *more]
    for stage in STAGES:
        subprocess.run([sys.executable, f"stages/{stage}.py", *settings], cwd=ROOT, check=True)


def ours(run: Path, *trainings: str) -> dict[str, Any]:
    """Return the figures of a finished run: score, samples of these stages, and their seconds."""
    return {
        **figures_of(run / "05_eval")["questions"],
        "samples": sum(figures_of(run / stage)["samples"] for stage in trainings),
        "seconds": sum(seconds_of(run / stage / "metrics.jsonl") for stage in trainings),
    }


def ours_alone(chosen: argparse.Namespace, samples: int) -> dict[str, Any]:
    """Return the figures of a run that takes all its samples in stage 04."""
    of_finetune = figures_of(ROOT / "runs" / chosen.run / STAGES[4])["samples"]
    run_stages(f"{chosen.run}_alone", chosen.seed, chosen.epochs * samples / of_finetune, *NOTHING_BEFORE)
    return ours(ROOT / "runs" / f"{chosen.run}_alone", STAGES[4])


def seconds_of(metrics: Path) -> float:
    """Return how long the steps of a training took, looks left out."""
    rows = [row for row in map(json.loads, metrics.open()) if "seconds_per_step" in row]
    steps = [0, *(row["step"] for row in rows)]
    return sum(row["seconds_per_step"] * (row["step"] - before) for row, before in zip(rows, steps, strict=False))


def trainers(recipe: Recipe, run: Path, corpus: Path, samples: int, seed: int) -> dict[str, Any]:
    """Return Trainer's figures at the best of its rates."""
    rate, tried = best_rate(recipe, run, corpus, samples, seed)
    return {**at_rate(recipe, rate, run, corpus, samples, seed), "rate": rate, "tried": tried}


def best_rate(recipe: Recipe, run: Path, corpus: Path, samples: int, seed: int) -> tuple[float, dict[float, float]]:
    """Return the best of Trainer's rates, and the score of each after a part of the samples if there are several."""
    if len(recipe.rates) == 1:
        return recipe.rates[0], {}
    tried = {rate: at_rate(recipe, rate, run, corpus, samples // TRIAL, seed)["score"] for rate in recipe.rates}
    return max(tried, key=tried.get), tried


def at_rate(recipe: Recipe, rate: float, run: Path, corpus: Path, count: int, seed: int) -> dict[str, Any]:
    """Return Trainer's figures at a rate."""
    out = run / "trainer" / f"alpha_{recipe.alpha}_rate_{rate:g}_samples_{count}"
    work = partial(quality_trainer.train, recipe, rate, run / "01_assemble/model", corpus, count, seed, out)
    return learned(out, work, run, count, seed)


def frameworks(name: str, run: Path, corpus: Path, samples: int, seed: int) -> dict[str, Any]:
    """Return a framework's figures, with our adapters at the rate that is Trainer's best with them."""
    recipe = RECIPES["our_adapters"]
    rate, _ = best_rate(recipe, run, corpus, samples, seed)
    out = run / "frameworks" / f"{name}_rate_{rate:g}_samples_{samples}"
    base = run / "01_assemble/model"
    work = partial(quality_frameworks.train, name, recipe, rate, base, corpus, samples, seed, out)
    return {**learned(out, work, run, samples, seed), "rate": rate}


def learned(out: Path, work: Callable[[], float], run: Path, count: int, seed: int) -> dict[str, Any]:
    """Let `work` leave a model in `out` and ask it the questions of stage 05, or take what is there of it."""
    if not (out / "figures.json").is_file():
        seconds = work()
        AutoProcessor.from_pretrained(run / "01_assemble/model").save_pretrained(out / "model")
        tasks = {"questions": TaskConfig(max_new_tokens=12)}
        settings = EvalConfig(tasks=tasks, model=str(out / "model"), runtime=EvalRuntime(batch_size=128))
        (out / "eval").mkdir(exist_ok=True)
        figures = evaluate(settings, seed, out.name, None, run / "02_shard", out / "eval")["questions"]
        (out / "figures.json").write_text(json.dumps({**figures, "samples": count, "seconds": seconds}))
    return json.loads((out / "figures.json").read_text())


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the figures as lines of text."""
    lines = [f"{'':44}{'% right':>9}{'interval':>14}{'shuffled':>10}{'samples':>9}{'seconds':>9}{'samples/s':>11}"]
    for name, of in found.items():
        low, high = of["interval"]
        interval, rate = f"{low:.1f}-{high:.1f}", of["samples"] / of["seconds"]
        lines.append(
            f"{name:44}{of['score']:>9.1f}{interval:>14}{of['shuffled']:>10.1f}"
            f"{of['samples']:>9,}{of['seconds']:>9.0f}{rate:>11.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Train and evaluate all; print the table and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="quality", help="the pipeline's run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=2, help="of stage 04 (default: %(default)s)")
    peers = [*RECIPES, *FRAMEWORKS]
    parser.add_argument("--peers", nargs="*", default=peers, choices=peers)
    chosen = parser.parse_args()
    run_stages(chosen.run, chosen.seed, chosen.epochs)
    run, corpus = ROOT / "runs" / chosen.run, ROOT / "demo/corpus"
    found, missing = {OURS: ours(run, *STAGES[3:5])}, {}
    found[ALONE] = ours_alone(chosen, found[OURS]["samples"])
    asked = (run, corpus, found[OURS]["samples"], chosen.seed)
    for name in chosen.peers:
        if name in RECIPES:
            figures = trainers(RECIPES[name], *asked)
            found[f"Trainer, {RECIPES[name].title}: {figures['rate']:g}"] = figures
            continue
        try:
            figures = frameworks(name, *asked)
        except (Failed, Missing) as reason:
            missing[FRAMEWORKS[name]] = str(reason)
            continue
        found[f"{FRAMEWORKS[name]}: {figures['rate']:g}"] = figures
    print(table(found))
    for name, reason in missing.items():
        print(f"took no part: {name}: {reason}")
    print(json.dumps({"seed": chosen.seed, "load": load(), "missing": missing, **found}))


if __name__ == "__main__":
    main()
