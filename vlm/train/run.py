"""One training from its settings to a model folder: stages 03 and 04."""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from vlm import ranks
from vlm.config import Dtype, Strategy, TrainConfig
from vlm.data.chat import Chat
from vlm.data.index import Split
from vlm.data.loader import Steps, check_split, load_steps
from vlm.data.pixels import Preprocessing
from vlm.data.plan import Plan, make_plan
from vlm.errors import Unusable
from vlm.model.export import link_folder, save_weights, stored_dtype
from vlm.model.forward import PackedLoss
from vlm.train import strategy
from vlm.train.checkpoint import Checkpoints
from vlm.train.engine import Engine, dissolve, join_ranks, lighten, shape_of, start_engine
from vlm.train.flops import Cost
from vlm.train.loop import fit
from vlm.train.report import Report

CHANGED_PARTS = {  # weight files that a strategy changes
    Strategy.projector: ("multi_modal_projector",),
    Strategy.freeze_vision: ("multi_modal_projector", "language_model"),
    Strategy.lora: ("multi_modal_projector", "language_model"),
    Strategy.full: ("vision_tower", "multi_modal_projector", "language_model"),
}


def train(cfg: TrainConfig, seed: int, *, base: Path, split: Path, out: Path) -> dict[str, Any]:
    """Train the model folder `base` on a split as the settings say; leave model/ in `out`.

    Goes on from the newest checkpoint in `out`. Returns the headline figures. Raises Unusable, before the model is
    loaded, if shards and model do not belong together.
    """
    if cfg.runtime.wandb and find_spec("wandb") is None:
        raise Unusable("runtime.wandb=true, but wandb is not installed: pip install wandb, or set it to false")
    chat = Chat.of_model(base)
    shards = check_split(split, chat.image_tokens)
    plan = _plan(cfg, seed, shards)
    join_ranks()
    if ranks.first():
        print(f"{plan.steps} steps of {cfg.samples_per_step} samples, {len(plan.order):,} samples in all", flush=True)
    how = Preprocessing.load(base)
    rows = cfg.runtime.rows_at_once
    steps = Steps(shards, plan, chat, how, rank=ranks.rank(), ranks=ranks.world(), rows_at_once=rows)
    steps.check(plan.samples(0)[:4].tolist())
    model, trainees, engine = _start(cfg, seed, base)
    checkpoints = Checkpoints(out / "checkpoints", trainees, plan, _recipe(cfg, seed, shards), cfg.runtime)
    progress = checkpoints.resume(engine)
    name = out.name.removesuffix(".partial")
    with Report(out, name, plan.steps, len(shards), cfg.runtime, progress, Cost.of(model, chat.image_tokens)) as report:
        fit(
            engine,
            load_steps(steps, progress.step, cfg.runtime.workers),
            plan,
            progress,
            checkpoints,
            report,
            how=how,
            seed=seed,
            schedule=cfg.schedule,
            warmup_ratio=cfg.warmup_ratio,
            skip_above=cfg.skip_above,
            max_skipped=cfg.runtime.max_skipped,
            watchdog_minutes=cfg.runtime.watchdog_minutes,
        )
        report.draw()
    dissolve(engine)
    if ranks.first():
        _export(model, cfg.strategy, base, out)
    ranks.barrier()
    size = sum(shape_of(trainee.weight).numel() for trainee in trainees)
    return {**asdict(progress), "trainable_parameters": size, "ranks": ranks.world()}


def _recipe(cfg: TrainConfig, seed: int, shards: Split) -> dict[str, Any]:
    """Return what may not change while a run goes on; how long it is, is the plan's to say."""
    names = ("samples_per_step", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "skip_above")
    values = {name: getattr(cfg, name) for name in names} | {"schedule": cfg.schedule.value}
    return {"shards": shards.fingerprint[:12], "seed": seed, **values, "betas": list(cfg.betas), "lr": asdict(cfg.lr)}


def _plan(cfg: TrainConfig, seed: int, shards: Split) -> Plan:
    return make_plan(
        shards.rows,
        seed,
        epochs=cfg.epochs,
        steps=cfg.steps,
        samples_per_step=cfg.samples_per_step,
        pack_tokens=cfg.pack_tokens,
        pack_images=cfg.pack_images,
        packing=cfg.packing,
    )


def _start(cfg: TrainConfig, seed: int, base: Path) -> tuple[torch.nn.Module, list[strategy.Trainee], Engine]:
    """Load the model, freeze what the strategy freezes and wrap it; return model, what trains, and engine."""
    bfloat16 = cfg.dtype is Dtype.bfloat16 or (cfg.dtype is None and ranks.device().type == "cuda")
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    llava = LlavaForConditionalGeneration.from_pretrained(base, local_files_only=True, dtype=dtype)
    model, trainees = strategy.choose(llava, cfg.strategy, cfg.lora, lambda: torch.manual_seed(seed))
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


def _export(model: torch.nn.Module, chosen: Strategy, base: Path, out: Path) -> None:
    """Write model/ (and adapter/): what did not change is linked to the base's files."""
    if chosen is Strategy.lora:
        model.save_pretrained(out / "adapter")
        model = model.merge_and_unload()
    link_folder(base, out / "model")
    save_weights(model, out / "model", stored_dtype(base), CHANGED_PARTS[chosen])
