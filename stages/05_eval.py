"""Stage 05: ask the held-out questions, score the answers, write the report.

Reads   04_finetune  the model
        02_shard     held-out splits
Writes  05_eval      predictions/<task>.jsonl, scored/<task>.jsonl, metrics.json, report.html

    python stages/05_eval.py
    python stages/05_eval.py eval=[pope,ok_vqa] run=pope eval.model=llava-hf/llava-1.5-7b-hf   any model, any benchmark
    python stages/05_eval.py run=theirs eval=pope eval.predictions=answers/                    answers that are there already
    python stages/05_eval.py run=after eval.against=before                                     its report shows what changed
    python stages/05_eval.py eval.compare=[before,after]                                       what changed between two runs
    torchrun --nproc-per-node 4 stages/05_eval.py                                              on four GPUs

Run it again to resume. Another model, or a benchmark's own files, take the place of the stages that they replace; the
hashes of their contents count in the artifact's key as the keys of stages do.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vlm.config import RootConfig
from vlm.errors import Unusable
from vlm.files import sha256
from vlm.pipeline.artifact import load, write_figures
from vlm.pipeline.predictions import comparison
from vlm.pipeline.settings import typed
from vlm.pipeline.stage import Stage, start


def work(cfg: RootConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Answer, score and report."""
    from vlm.eval.compare import earlier
    from vlm.eval.judge import judging
    from vlm.eval.report import Beside
    from vlm.eval.run import evaluate

    finetuned = inputs.get("04_finetune")
    trainings = [] if finetuned is None else [finetuned.with_name("03_pretrain"), finetuned]
    beside = Beside(
        forecasts={folder.name: comparison(folder) for folder in trainings},
        earlier=cfg.eval.against and earlier(Path(cfg.runs), cfg.eval.against, list(cfg.eval.tasks)),
    )
    cache = Path(cfg.eval.judge.runtime.cache or Path(cfg.runs) / "endpoint_cache")
    with judging(cfg.eval, cache, out) as judge:
        found = evaluate(cfg.eval, cfg.seed, cfg.run, finetuned, inputs.get("02_shard"), out, judge, beside)
    write_figures(out, found)


def needs(cfg: RootConfig) -> tuple[str, ...]:
    """Return the stages that are read: stage 04 unless another model or answers are given, stage 02 for its splits."""
    asks_own = cfg.eval.model is None and cfg.eval.predictions is None
    asks_split = any(not task.sources for task in cfg.eval.tasks.values())
    return ("04_finetune",) * asks_own + ("02_shard",) * asks_split


def given(cfg: RootConfig) -> dict[str, str]:
    """Return hashes of what comes from outside the run: a model, benchmark files, answers."""
    from vlm.model.hub import is_hub_id, locate
    from vlm.model.saved import find

    found = {}
    if cfg.eval.against is not None:
        found["eval.against"] = load(Path(cfg.runs) / cfg.eval.against / "05_eval").key
    if cfg.eval.model is not None and is_hub_id(cfg.eval.model):  # with its @revision the id says it all
        locate(cfg.eval.model, "eval.model")
    elif cfg.eval.model is not None:
        found["eval.model"] = find(cfg.eval.model, cfg.eval.base).fingerprint
    for name, task in cfg.eval.tasks.items():
        files = [Path(file) for one in task.sources for file in (one.path, one.annotations) if file]
        if cfg.eval.predictions is not None:
            files.append(Path(cfg.eval.predictions) / f"{name}.jsonl")
        hashes = [sha256(file) for file in files if file.is_file()]  # one that is missing is named by whoever reads it
        if hashes:
            found[f"eval.tasks.{name}"] = hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]
    return found


stage = Stage(
    __file__,
    ("04_finetune", "02_shard"),
    ("seed", "eval"),
    work,
    distributed=True,
    needs=needs,
    given=given,
    concludes=True,
)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run the stage on the composed settings; comparing two runs makes no artifact of either."""
    try:
        cfg = typed(composed)
        if not cfg.eval.compare:
            stage.run(composed)
            return
        from vlm.eval.compare import compare

        compare(Path(cfg.runs), *cfg.eval.compare, cfg.seed)
    except Unusable as problem:
        sys.exit(f"{stage.name}: {problem}")


if __name__ == "__main__":
    start(main)
