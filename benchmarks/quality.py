"""What a model learns here, beside the same base and data trained by transformers' Trainer as train-llava does it.

    python -m vlm.demo && python -m benchmarks.quality

The pipeline runs by its own stages, `finetune=lora`. Trainer begins from the same assembled folder, with its projector as it
was drawn, and sees as many samples as stages 03 and 04 together, all of them conversations. Its rate is the best of a few,
by the very questions that are asked in the end: each is tried on a quarter of the samples first.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.timing import load
from vlm.config import EvalConfig, EvalRuntime, TaskConfig
from vlm.eval.run import evaluate
from vlm.pipeline.artifact import figures_of

ROOT = Path(__file__).parents[1]
STAGES = ("00_tokenizer", "01_assemble", "02_shard", "03_pretrain", "04_finetune", "05_eval")
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*QKVO, "gate_proj", "up_proj", "down_proj"]
OURS = "stages 03 and 04"
BATCH = 16
IGNORED = -100


TRIAL = 4  # a rate is tried on one sample in so many


@dataclass(frozen=True)
class Peer:
    """How Trainer trains: adapters on every layer of these names, tower included, and the projector at one rate."""

    title: str
    alpha: int
    targets: list[str]
    rates: tuple[float, ...]  # of which the best is taken
    rank: int = 32
    dropout: float = 0.05


PEERS = {
    "train_llava": Peer("as train-llava", 8, QKVO, (4e-4,)),  # it left alpha at PEFT's default
    "its_adapters": Peer("its adapters, best rate", 8, QKVO, (4e-4, 1e-3, 2.5e-3, 6e-3)),
    "our_adapters": Peer("our adapters, best rate", 64, LINEAR, (4e-4, 1e-3, 2.5e-3), dropout=0.0),
}


class Conversations(Dataset):
    """LLaVA JSON read over and over until there are `count` samples; every answer is learnt, not the first alone."""

    def __init__(self, listed: Path, images: Path, processor: LlavaProcessor, count: int) -> None:
        self.records = json.loads(listed.read_text())
        self.images = images
        self.processor = processor
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        record = self.records[at % len(self.records)]
        tokenizer, image = self.processor.tokenizer, self.processor.image_token
        roles = {"human": "user", "gpt": "assistant"}
        turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]

        def text(count: int, *, asks: bool) -> str:
            written = tokenizer.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=asks)
            return written.replace(image, image * self.image_tokens)

        spans = [(len(text(n, asks=True)), len(text(n + 1, asks=False).rstrip())) for n in range(1, len(turns), 2)]
        coded = tokenizer(text(len(turns), asks=False), return_offsets_mapping=True, add_special_tokens=False)
        ids = torch.tensor(coded["input_ids"])
        is_target = [any(start <= first < end for start, end in spans) for first, _ in coded["offset_mapping"]]
        pixels = self.processor.image_processor(Image.open(self.images / record["image"]), return_tensors="pt")
        labels = torch.where(torch.tensor(is_target), ids, IGNORED)
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels["pixel_values"]}

    @property
    def image_tokens(self) -> int:
        size, patch = self.processor.image_processor.crop_size["height"], self.processor.patch_size
        return (size // patch) ** 2


def pad(samples: list[dict[str, Tensor]], filler: int) -> dict[str, Tensor]:
    """Return a batch as long as its longest sample, padded on the right."""

    def stacked(name: str, value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([one[name] for one in samples], True, value)

    lengths = torch.tensor([len(one["input_ids"]) for one in samples])
    ids = stacked("input_ids", filler)
    return {
        "input_ids": ids,
        "labels": stacked("labels", IGNORED),
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "pixel_values": torch.cat([one["pixel_values"] for one in samples]),
    }


def train(peer: Peer, rate: float, base: Path, corpus: Path, count: int, seed: int, out: Path) -> float:
    """Train by Trainer and leave the merged model in `out`/model; return the seconds."""
    set_seed(seed)
    processor = AutoProcessor.from_pretrained(base)
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    adapters = LoraConfig(
        r=peer.rank,
        lora_alpha=peer.alpha,
        lora_dropout=peer.dropout,
        target_modules=peer.targets,
        modules_to_save=["multi_modal_projector"],
    )
    data = Conversations(corpus / "finetune.json", corpus / "images", processor, count)
    settings = TrainingArguments(
        output_dir=str(out / "trainer"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=rate,
        lr_scheduler_type="linear",
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        logging_steps=100,
        seed=seed,
    )
    filler = processor.tokenizer.pad_token_id
    trainer = Trainer(
        get_peft_model(model, adapters), settings, lambda samples: pad(samples, filler), train_dataset=data
    )
    began = time.monotonic()
    trainer.train()
    took = time.monotonic() - began
    trainer.model.merge_and_unload().save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    return took


def run_stages(run: str, seed: int, epochs: float) -> None:
    """Bring a run of the pipeline to its end; what is there is not done again."""
    settings = [f"run={run}", f"seed={seed}", "finetune=lora", f"finetune.epochs={epochs:g}"]
    for stage in STAGES:
        subprocess.run([sys.executable, f"stages/{stage}.py", *settings], cwd=ROOT, check=True)


def ours(run: Path) -> dict[str, Any]:
    """Return the figures of a finished run: score, samples of stages 03 and 04, and their seconds."""
    trainings = [figures_of(run / stage) for stage in STAGES[3:5]]
    return {
        **figures_of(run / "05_eval")["questions"],
        "samples": sum(figures["samples"] for figures in trainings),
        "seconds": sum(seconds_of(run / stage / "metrics.jsonl") for stage in STAGES[3:5]),
    }


def seconds_of(metrics: Path) -> float:
    """Return how long the steps of a training took, looks left out."""
    rows = [row for row in map(json.loads, metrics.open()) if "seconds_per_step" in row]
    steps = [0, *(row["step"] for row in rows)]
    return sum(row["seconds_per_step"] * (row["step"] - before) for row, before in zip(rows, steps, strict=False))


def theirs(peer: Peer, run: Path, corpus: Path, samples: int, seed: int) -> dict[str, Any]:
    """Return a peer's figures at the best of its rates."""

    def at(rate: float, count: int) -> dict[str, Any]:
        out = run / "trainer" / f"alpha_{peer.alpha}_rate_{rate:g}_samples_{count}"
        return trained(peer, rate, run, corpus, count, seed, out)

    tried = {rate: at(rate, samples // TRIAL)["score"] for rate in peer.rates} if len(peer.rates) > 1 else {}
    best = max(tried, key=tried.get) if tried else peer.rates[0]
    return {**at(best, samples), "rate": best, "tried": tried}


def trained(peer: Peer, rate: float, run: Path, corpus: Path, count: int, seed: int, out: Path) -> dict[str, Any]:
    """Train a peer, or take what is there of it, and ask it the questions of stage 05."""
    if not (out / "figures.json").is_file():
        seconds = train(peer, rate, run / "01_assemble/model", corpus, count, seed, out)
        tasks = {"questions": TaskConfig(max_new_tokens=12)}
        settings = EvalConfig(tasks=tasks, model=str(out / "model"), runtime=EvalRuntime(batch_size=128))
        (out / "eval").mkdir(exist_ok=True)
        figures = evaluate(settings, seed, out.name, None, run / "02_shard", out / "eval")["questions"]
        (out / "figures.json").write_text(json.dumps({**figures, "samples": count, "seconds": seconds}))
    return json.loads((out / "figures.json").read_text())


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the figures as lines of text."""
    lines = [f"{'':44}{'% right':>9}{'interval':>14}{'shuffled':>10}{'samples':>9}{'seconds':>9}"]
    for name, of in found.items():
        low, high = of["interval"]
        interval, shuffled = f"{low:.1f}-{high:.1f}", of["shuffled"]
        lines.append(
            f"{name:44}{of['score']:>9.1f}{interval:>14}{shuffled:>10.1f}{of['samples']:>9,}{of['seconds']:>9.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Train and evaluate all; print the table and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="quality", help="the pipeline's run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=2, help="of stage 04 (default: %(default)s)")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    chosen = parser.parse_args()
    run_stages(chosen.run, chosen.seed, chosen.epochs)
    run, corpus = ROOT / "runs" / chosen.run, ROOT / "demo/corpus"
    found = {OURS: ours(run)}
    for name in chosen.peers:
        figures = theirs(PEERS[name], run, corpus, found[OURS]["samples"], chosen.seed)
        found[f"Trainer, {PEERS[name].title}: {figures['rate']:g}"] = figures
    print(table(found))
    print(json.dumps({"seed": chosen.seed, "load": load(), **found}))


if __name__ == "__main__":
    main()
