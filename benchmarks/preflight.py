"""How near preflight's memory comes to what a training really takes, on this machine.

Every training runs in a process of its own on random weights; what is measured is the highest resident memory, of training and saving, above
that of the process after its imports.

    python -m benchmarks.preflight
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.corpus import CC3M, PROSE, make_corpus
from vlm.config import (
    DataConfig,
    Dtype,
    Form,
    LearningRates,
    LoraConfig,
    ModelConfig,
    Recompute,
    ShardRuntime,
    SourceConfig,
    SplitConfig,
    Strategy,
    TrainConfig,
    TrainRuntime,
)
from vlm.data.chat import Chat
from vlm.data.shards import build as shard
from vlm.demo.tokenizer import train_tokenizer
from vlm.model.build import build
from vlm.model.tokenizer import patch

MIB = 2**20
SIZES = {"110M": (640, 12, 1728), "220M": (896, 16, 2432)}  # width, layers, width inside of the language model
VOCABULARY = 32_000
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc else keeps what was freed, up to half of all
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RATES = {  # what each strategy trains
    Strategy.projector: ("projector",),
    Strategy.full: ("projector", "language_model", "vision_tower"),
    Strategy.freeze_vision: ("projector", "language_model"),
    Strategy.lora: ("projector", "lora"),
}


def main() -> None:
    """Predict and measure each training; print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--strategies", nargs="*", default=[one.value for one in RATES])
    parser.add_argument("--recompute", nargs="*", default=["none", "full"])
    parser.add_argument("--child", nargs=4, metavar=("FOLDER", "STRATEGY", "RECOMPUTE", "OUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        folder, strategy, recompute, out = chosen.child
        print(json.dumps(measure(Path(folder), settings(Strategy(strategy), Recompute(recompute)), Path(out))))
        return
    rows = []
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, *SIZES[size])
            rows += [
                compare(folder, size, Strategy(strategy), Recompute(recompute))
                for strategy in chosen.strategies
                for recompute in chosen.recompute
            ]
    print(json.dumps(rows))


def compare(folder: Path, size: str, strategy: Strategy, recompute: Recompute) -> dict:
    """Print and return what was predicted and measured of one training, MiB."""
    from vlm.train.preflight import estimate

    found = estimate(
        settings(strategy, recompute),
        0,
        ModelConfig(),
        base=folder / "model",
        split=folder / "shards/finetune",
        ranks=1,
        is_gpu=False,
    )
    out = folder / f"out-{strategy.value}-{recompute.value}"
    names = (strategy.value, recompute.value)
    command = [sys.executable, "-m", "benchmarks.preflight", "--child", str(folder), *names, str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | RETURNS_MEMORY)
    measured = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(out)
    row = {"size": size, "strategy": strategy.value, "recompute": recompute.value}
    row |= {"predicted": found.bytes_needed / MIB, **measured}
    row["ratio"] = row["predicted"] / row["measured"]
    items = ", ".join(f"{name} {size / MIB:.0f}" for name, size in found.memory.items())
    print(
        f"{row['size']:6}{row['strategy']:15}{row['recompute']:6} predicted {row['predicted']:>7.0f} MiB, measured {row['measured']:>7.0f}: "
        f"{row['ratio']:.2f}   ({items})",
        flush=True,
    )
    return row


def measure(folder: Path, cfg: TrainConfig, out: Path) -> dict:
    """Train three steps and save; return the highest memory above that of the process when it began, MiB."""
    from vlm.train.engine import join_ranks
    from vlm.train.run import train

    out.mkdir()
    join_ranks()
    torch.nn.functional.linear(torch.randn(512, 512), torch.randn(512, 512))  # the library's own buffers
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    figures = train(cfg, 0, base=folder / "model", split=folder / "shards/finetune", out=out)
    return {"measured": figures["memory_bytes"] / MIB}


def settings(strategy: Strategy, recompute: Recompute) -> TrainConfig:
    """Return three steps of two rows of 512 tokens."""
    return TrainConfig(
        strategy=strategy,
        steps=3,
        samples_per_step=8,
        pack_tokens=512,
        dtype=Dtype.float32,
        lr=LearningRates(**dict.fromkeys(RATES[strategy], 0.0001)),
        lora=LoraConfig(rank=32, alpha=64.0, dropout=0.0, targets=TARGETS),
        deepspeed={"zero_optimization": {"stage": 0}},
        runtime=TrainRuntime(rows_at_once=2, workers=0, save_every=1000, recompute=recompute),
    )


def make(folder: Path, width: int, layers: int, inside: int) -> None:
    """Write a random model with its tokenizer, and shards of noise."""
    torch.manual_seed(0)
    language = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inside,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(language).save_pretrained(folder / "language")
    train_tokenizer([PROSE, "Describe it. system user assistant"], 400).save_pretrained(folder / "language")
    tower = CLIPVisionConfig(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        image_size=112,
        patch_size=14,
    )
    CLIPVisionModel(tower).save_pretrained(folder / "tower")
    edge = {"height": 112, "width": 112}
    CLIPImageProcessor(size={"shortest_edge": 112}, crop_size=edge).save_pretrained(folder / "tower")
    model = ModelConfig(
        language_model=str(folder / "language"), vision_tower=str(folder / "tower"), dtype=Dtype.float32
    )
    patch(model.language_model, "<image>", folder / "tokenizer")
    build(model, folder / "tokenizer", 0, folder / "model")
    corpus = SourceConfig(
        path=str(make_corpus(folder / "corpus", CC3M, 64, seed=0)), images=str(folder / "corpus/images")
    )
    data = DataConfig(finetune=SplitConfig(sources=[corpus], form=Form.chat), runtime=ShardRuntime(workers=1))
    shard(data, Chat.of_model(folder / "model"), 0, folder / "shards")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
