"""Training steps side by side with the frameworks that users would pick instead.

    python -m benchmarks.training                    all cases
    python -m benchmarks.training captions mixed     some

All contestants start from the same weights and take the same samples in every step, one step a turn; equal losses show
it. Each lives in a process of its own and waits while the others work. Memory is measured in a run of its own.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import Missing, python_of
from benchmarks.table import OURS, Row, show
from benchmarks.train_step import CASES as STEP_CASES
from benchmarks.train_step import settings
from benchmarks.turns import RETURNS_MEMORY, Contestant, Failed, Turns

CASES = STEP_CASES | {"lora": replace(STEP_CASES["lora"], lengths="pictured")}
RATE, RANK, ALPHA = 1e-4, 32, 64.0
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
SAMPLES = {"captions": 8, "full": 8, "mixed": 16, "lora": 8}  # of a step, which is the whole corpus
GOAL = {"captions": 1.4, "full": 1.4, "mixed": 2.0, "lora": 1.4}  # times the samples/s of the best peer
MEMORY_GOAL = 0.7  # times the memory of the best peer
NAMES = {"captions": "step 03", "full": "step 04, full, one length", "mixed": "step 04, full, mixed lengths"}
NAMES |= {"lora": "step 04, LoRA, mixed lengths, all with a picture"}
DEFAULTS = {"packing": False, "recompute": True, "ours": None}  # of what a contestant is told
# name: (environment, module, what it is told)
CONTESTANTS = {
    OURS: (None, "benchmarks.training", {}),
    f"{OURS}, recompute=full": (None, "benchmarks.training", {"ours": "full"}),  # the trade that most peers make
    "Trainer, as train-llava": (None, "benchmarks.training", {"recompute": True}),
    "TRL SFTTrainer": ("trl", "benchmarks.peers.trl_sft", {"recompute": True}),
    "TRL, nothing recomputed": ("trl", "benchmarks.peers.trl_sft", {"recompute": False}),
    "LLaMA-Factory": ("llamafactory", "benchmarks.peers.llamafactory_sft", {"recompute": True}),
    "LLaMA-Factory, neat_packing": ("llamafactory", "benchmarks.peers.llamafactory_sft", {"packing": True}),
    "ms-swift": ("swift", "benchmarks.peers.swift_sft", {"recompute": True}),
}


def main() -> None:
    """Measure the cases; print their tables and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="scaled", help="of benchmarks/scaled.py")
    parser.add_argument("--rows", type=int, default=4, help="samples that a peer computes at once")
    parser.add_argument("--contestants", nargs="*", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        work(json.loads(chosen.child.read_text()))
        return
    if unknown := set(chosen.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}: choose of {', '.join(CASES)}")
    rows = []
    for name in chosen.cases or CASES:
        rows += measure(name, chosen.rounds, chosen.shape, chosen.rows, chosen.contestants)
        show(rows[-2:])
    print(json.dumps([row.as_json() for row in rows]))


def measure(
    name: str, rounds: int, shape: str = "scaled", rows: int = 4, contestants: list[str] | None = None
) -> list[Row]:
    """Let the contestants train on a case in turns; return the rows of speed and of memory."""
    speed = Row(NAMES[name], "samples/s", GOAL[name])
    memory = Row(f"{NAMES[name]}: memory", "MiB", MEMORY_GOAL, True, goal_is_share=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asked = make(folder, name, shape, rows, rounds + 1)
        alive: list[Contestant] = []
        try:
            for contestant in contestants or CONTESTANTS:
                with taking_part(speed, contestant):
                    alive.append(start(contestant, asked, folder))
            take_turns(alive, rounds, asked["samples"], speed)
        finally:
            for one in alive:
                one.kill()
        with ThreadPoolExecutor(2) as pool:  # memory does not mind company
            peaks = pool.map(lambda one: (one, peak(one, asked, folder)), list(speed.figures))
            for contestant, found in peaks:
                memory.figures[contestant] = [found]
    return [speed, memory]


@contextmanager
def taking_part(row: Row, contestant: str) -> Iterator[None]:
    """Go on without a contestant that fails, and note the reason in the row."""
    try:
        yield
    except (Failed, Missing) as reason:
        row.figures.pop(contestant, None)
        row.missing[contestant] = str(reason)
        print(f"  {contestant} takes no part: {reason}", flush=True)


def make(folder: Path, name: str, shape: str, rows: int, steps: int) -> dict[str, Any]:
    """Write weights, shards and the same samples as a plain list; return what a contestant is asked to do."""
    from benchmarks import scaled
    from vlm.config import Dtype, Form

    case, samples = CASES[name], SAMPLES[name]
    model = scaled.make_model(folder / "parts", scaled.SHAPES[shape])
    lengths = getattr(scaled, case.lengths)(samples, np.random.default_rng(0))
    (folder / "corpus").mkdir()
    split = scaled.make_shards(folder / "corpus", model, lengths, Form(case.form))
    (folder / "listed.json").write_text(json.dumps(listed(model, split, folder / "corpus/images")))
    return {
        "case": name,
        "shape": shape,
        "model": str(model),
        "split": str(split),
        "listed": str(folder / "listed.json"),
        "strategy": case.strategy,
        "samples": samples,
        "rows": rows,
        "steps": steps,
        "rate": RATE,
        "lora": {"rank": RANK, "alpha": ALPHA, "targets": TARGETS},
        "pack_tokens": case.pack_tokens,
        "packs": samples,  # of a step, at most: it takes the whole corpus
        "workers": 0,
        "seed": 0,
        "save": None,
        "bfloat16": scaled.SHAPES[shape].dtype is Dtype.bfloat16,
    }


def listed(model: Path, split: Path, images: Path) -> list[dict[str, Any]]:
    """Return every sample as messages in the words that we train on, and paths of its pictures."""
    from benchmarks.conversations import written
    from vlm.data.chat import Chat
    from vlm.data.index import Split
    from vlm.data.samples import IMAGE

    chat, stored = Chat.of_model(model), Split(split)
    tokenizer, end, found = chat.tokenizer, chat.tokenizer.eos_token, []
    for number in range(len(stored)):
        sample = stored.read(number).sample
        messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
        if stored.form.value == "chat":
            messages = written(tokenizer, messages)
        else:
            messages = [{"role": "user", "content": IMAGE}, {**messages[-1], "content": messages[-1]["content"] + end}]
        has_picture = IMAGE in messages[0]["content"]
        pictures = [str(images / f"{int(sample.id) % len(list(images.iterdir())):06d}.jpg")] if has_picture else []
        found.append({"messages": messages, "images": pictures})
    return found


def start(name: str, asked: dict[str, Any], folder: Path, **environment: str) -> Contestant:
    """Start a contestant and wait until its imports are done."""
    needs, module, told = CONTESTANTS[name]
    python = python_of(needs) if needs else sys.executable
    out = Path(tempfile.mkdtemp(dir=folder))
    (out / "asked.json").write_text(json.dumps({**DEFAULTS, **told, **asked, "name": name, "out": str(out)}))
    flag = ["--child"] if needs is None else []
    one = Contestant(name, [python, "-m", module, *flag, str(out / "asked.json")], out / "log", **environment)
    one.wait()
    return one


def take_turns(alive: list[Contestant], rounds: int, samples: int, row: Row) -> None:
    """Give every contestant a turn in every round; the first, which loads the model, does not count."""
    for number in range(rounds + 1):
        for one in list(alive):
            with taking_part(row, one.name):
                seconds = one.turn()["seconds"]
                if number:
                    row.figures.setdefault(one.name, []).append(samples / seconds)
                    print(f"  round {number}: {one.name} {samples / seconds:.3f} samples/s", flush=True)
            if one.name in row.missing:
                alive.remove(one)
    for one in alive:
        with taking_part(row, one.name):
            losses = one.turn()["losses"]
            row.notes[one.name] = "losses " + " ".join(f"{loss:.4f}" for loss in losses)


def peak(name: str, asked: dict[str, Any], folder: Path) -> float:
    """Return the highest memory of one step, MiB, above what the process held after its imports."""
    one = start(name, asked, folder, OMP_NUM_THREADS="1", **RETURNS_MEMORY)
    try:
        return one.turn()["peak_mib"]
    finally:
        one.kill()


def work(asked: dict[str, Any]) -> None:
    """Train as a contestant that needs no environment of its own, a step a turn."""
    from vlm.train.engine import join_ranks

    case = CASES[asked["case"]]
    case = replace(case, recompute=asked["ours"] or case.recompute)
    chosen = argparse.Namespace(our_rows=1, **{key: asked[key] for key in ("steps", "samples", "shape")})
    cfg = settings(chosen, case)
    places = {"base": Path(asked["model"]), "split": Path(asked["split"]), "out": Path(asked["out"])}
    if asked["name"].startswith(OURS):
        from vlm.train.checkpoint import Checkpoints
        from vlm.train.run import train

        join_ranks()
        turns = Turns()
        turns.begin()
        Checkpoints.save = lambda *_: None  # no peer saves while it is timed
        train(cfg, 0, **places)
        rows = [json.loads(line) for line in (places["out"] / "metrics.jsonl").read_text().splitlines()]
        turns.end(losses=[row["loss"] for row in rows])
        return
    from benchmarks.trainer import train as train_peer

    turns = Turns()
    turns.begin()
    clock = train_peer(cfg, 0, **places, rows=asked["rows"], recompute=asked["recompute"])
    turns.end(losses=clock.losses)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
