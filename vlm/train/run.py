"""One training from its settings to a model folder: stages 03 and 04."""

from contextlib import closing
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from vlm import ranks
from vlm.config import ADAPTED, Dtype, Strategy, TrainConfig
from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.data.loader import Steps, check_split, load_steps, whole_workers
from vlm.data.pixels import Preprocessing
from vlm.errors import Unusable
from vlm.model.export import link_folder, save_weights, stored_dtype
from vlm.model.forward import PackedLoss
from vlm.model.quantise import bitsandbytes, quantise
from vlm.model.verify import PROBE, write_probe
from vlm.train import strategy
from vlm.train.checkpoint import Checkpoints, base_hash
from vlm.train.engine import Engine, dissolve, join_ranks, lighten, start_engine
from vlm.train.evaluate import Ask, Evaluation, HeldOut
from vlm.train.flops import Cost
from vlm.train.loop import Rules, fit
from vlm.train.planning import plan_of
from vlm.train.probe import check_isolation
from vlm.train.report import Report, memory_now, memory_peak

PLAN = "plan.npy"  # the sample numbers in the order of training: step t has those from t * samples_per_step on


@ranks.in_contact()
@whole_workers()
def train(cfg: TrainConfig, seed: int, *, base: Path, split: Path, out: Path, ask: Ask | None = None) -> dict[str, Any]:
    """Train the model folder `base` on a split as the settings say; leave model/ in `out`.

    Goes on from the newest checkpoint in `out`. `ask` asks the questions of an evaluation. Returns the headline
    figures. Raises Unusable, before the model is loaded, if shards and model do not belong together; Hindered if another
    rank or a loader's process is gone.
    """
    held = memory_now()
    ranks.pin_threads(cfg.runtime.threads)
    ranks.sum_in_one_order(cfg.runtime.deterministic)
    _check(cfg)
    steps = _steps(cfg, seed, base, split)
    plan, shards, chat, how = steps.plan, steps.split, steps.chat, steps.how
    held_out = _held_out(cfg, seed, split, chat, how) if cfg.evaluation.is_on else None
    model, trainees, engine = _start(cfg, seed, base)
    if ranks.first():
        np.save(out / PLAN, plan.order)  # not before: settings that are refused leave no work begun
    recipe = _recipe(cfg, seed, shards, base)
    checkpoints = Checkpoints(out / "checkpoints", trainees, plan, recipe, cfg.runtime)
    progress = checkpoints.resume(engine)
    check_isolation(engine, steps)
    name = out.name.removesuffix(".partial")
    cost = Cost.of(model, chat.image_tokens)
    sources = shards.manifest["sources"] if len(np.unique(plan.sources)) > 1 else []
    with (
        Report(out, name, plan.steps, len(shards), cfg.runtime, progress, cost, sources) as report,
        # closed whatever happens: workers ignore the signal with which Python would end them at its exit
        closing(load_steps(steps, progress.step, cfg.runtime.workers)) as batches,
    ):
        evaluation = Evaluation(cfg.evaluation, held_out, ask, plan, report, out)
        fit(engine, batches, plan, progress, checkpoints, report, evaluation, how, _rules(cfg, seed, plan.steps))
        report.draw()
        took = memory_peak() - held  # of training and saving; the export has its own
    chosen = evaluation.only_best()
    if chosen and not Checkpoints(chosen, trainees, plan, recipe, cfg.runtime).resume(engine).step:
        raise Unusable(f"{out}/best lacks the checkpoint of the best look: delete {out} and train again")
    write_probe(engine.module, out / PROBE)
    size = sum(strategy.shape_of(trainee.weight).numel() for trainee in trainees)
    dissolve(engine)
    if ranks.first():
        _export(model, cfg, base, out)
    ranks.barrier()
    return {
        **asdict(progress),
        "trainable_parameters": size,
        "ranks": ranks.world(),
        "memory_bytes": took,
        **evaluation.figures(),
    }


def _check(cfg: TrainConfig) -> None:
    """Raise Unusable, before anything is loaded, if the settings ask for what is not there."""
    if cfg.strategy is Strategy.qlora:
        bitsandbytes()
    if cfg.runtime.wandb and find_spec("wandb") is None:
        raise Unusable("runtime.wandb=true, but wandb is not installed: pip install wandb, or set it to false")
    for part in strategy.parts_that_train(cfg.strategy, cfg.train):
        strategy.peak_of(part, cfg.lr)


def _steps(cfg: TrainConfig, seed: int, base: Path, split: Path) -> Steps:
    """Meet the other ranks and return this one's share of every step; a few samples are read as training will."""
    chat = Chat.of_model(base)
    shards = check_split(split, chat.image_tokens)
    plan = plan_of(cfg, seed, shards)
    join_ranks()
    if ranks.first():
        print(f"{plan.steps} steps of {cfg.samples_per_step} samples, {len(plan.order):,} samples in all", flush=True)
    how, rows = Preprocessing.load(base), cfg.runtime.rows_at_once
    steps = Steps(shards, plan, chat, how, rank=ranks.rank(), ranks=ranks.world(), rows_at_once=rows)
    steps.check(plan.samples(0)[:4].tolist())
    return steps


def _rules(cfg: TrainConfig, seed: int, steps: int) -> Rules:
    """Return what the loop needs to know of the settings, for so many steps."""
    return Rules(
        seed=seed,
        schedule=cfg.schedule,
        warmup=cfg.warmup(steps),
        skip_above=cfg.skip_above,
        max_skipped=cfg.runtime.max_skipped,
        watchdog_minutes=cfg.runtime.watchdog_minutes,
    )


def _recipe(cfg: TrainConfig, seed: int, shards: Split, base: Path) -> dict[str, Any]:
    """Return what may not change while a run goes on; how long it is, is the plan's to say."""
    names = (
        "samples_per_step",
        "schedule",
        "warmup_ratio",
        "warmup_steps",
        "shards_at_once",
        "weight_decay",
        "max_grad_norm",
        "skip_above",
    )
    values = {name: getattr(cfg, name) for name in names} | {"schedule": cfg.schedule.value}
    values |= {"betas": list(cfg.betas), "lr": asdict(cfg.lr)}
    return {"shards": shards.fingerprint[:12], "base": base_hash(base)[:12], "seed": seed, **values}


def _held_out(cfg: TrainConfig, seed: int, split: Path, chat: Chat, how: Preprocessing) -> HeldOut:
    """Return what is held out from `split`, as much of it as an evaluation looks at."""
    shards = check_split(split.with_name(f"{split.name}_held_out"), chat.image_tokens)
    if not len(shards):
        raise Unusable(
            f"{shards.folder} holds no sample to look at: set finetune.evaluation.every=null, or hold some out"
        )
    plan = plan_of(replace(cfg, epochs=1.0, steps=None), seed, shards)
    plan = replace(plan, order=plan.order[: cfg.evaluation.samples])
    return HeldOut(shards, plan, chat, how, rows_at_once=cfg.runtime.rows_at_once, workers=cfg.runtime.workers)


def _start(cfg: TrainConfig, seed: int, base: Path) -> tuple[torch.nn.Module, list[strategy.Trainee], Engine]:
    """Load the model, freeze what the strategy freezes and wrap it; return model, what trains, and engine."""
    bfloat16 = cfg.dtype is Dtype.bfloat16 or (cfg.dtype is None and ranks.device().type == "cuda")
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    llava = LlavaForConditionalGeneration.from_pretrained(base, local_files_only=True, dtype=dtype)
    if cfg.strategy is Strategy.qlora:
        quantise(llava, ranks.device())
    model, trainees = strategy.choose(llava, cfg.strategy, cfg.train, cfg.lora, lambda: torch.manual_seed(seed))
    if ranks.first():
        print(strategy.table(model, trainees), flush=True)
    lighten(llava.model.language_model, cfg.runtime.recompute, cfg.runtime.compile)
    packed = PackedLoss(llava).to(ranks.device())
    if cfg.deepspeed.get("zero_optimization", {}).get("stage") == 3:
        packed.trains_tower = True  # a rank without pictures runs the tower too: its layers are gathered by all ranks
    engine = start_engine(
        packed,
        strategy.param_groups(trainees, cfg.lr, cfg.weight_decay),
        betas=(cfg.betas[0], cfg.betas[1]),
        max_grad_norm=cfg.max_grad_norm,
        bfloat16=bfloat16,
        extra=cfg.deepspeed,
    )
    return model, trainees, engine


def _export(model: torch.nn.Module, cfg: TrainConfig, base: Path, out: Path) -> None:
    """Write model/ (and adapter/): what did not change is linked to the base's files."""
    dtype = stored_dtype(base)
    if cfg.strategy in ADAPTED:
        from vlm.train.adapters import merged, save_adapter  # peft takes seconds to import

        save_adapter(model, out / "adapter")
        model = merged(base, out / "adapter", dtype)
    link_folder(base, out / "model")
    changed = {strategy.FILES[part] for part in strategy.parts_that_train(cfg.strategy, cfg.train)}
    save_weights(model, out / "model", dtype, tuple(sorted(changed)))
