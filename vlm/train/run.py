"""One training from its settings to a model folder: stages 03 and 04."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from vlm import ranks
from vlm.config import ADAPTED, Dtype, Strategy, TrainConfig
from vlm.data.chat import Chat
from vlm.data.loader import Steps, check_split, load_steps
from vlm.data.pixels import Preprocessing
from vlm.errors import Unusable
from vlm.model.export import link_folder, save_weights, stored_dtype
from vlm.model.forward import PackedLoss
from vlm.model.quantise import bitsandbytes, quantise
from vlm.model.verify import PROBE, write_probe
from vlm.train import strategy
from vlm.train.adapters import merged, save_adapter
from vlm.train.checkpoint import Checkpoints, base_hash
from vlm.train.engine import Engine, join_ranks, start_engine
from vlm.train.evaluate import Ask, Evaluation, HeldOut
from vlm.train.loop import fit
from vlm.train.planning import plan_of
from vlm.train.report import Report


def train(cfg: TrainConfig, seed: int, *, base: Path, split: Path, out: Path, ask: Ask | None = None) -> dict[str, Any]:
    """Train the model folder `base` on a split as the settings say; leave model/ in `out`.

    Goes on from the newest checkpoint in `out`. `ask` asks the questions of an evaluation. Returns the headline
    figures. Raises Unusable, before the model is loaded, if shards and model do not belong together.
    """
    if cfg.strategy is Strategy.qlora:
        bitsandbytes()
    chat = Chat.of_model(base)
    shards = check_split(split, chat.image_tokens)
    plan = plan_of(cfg, seed, shards)
    join_ranks()
    if ranks.first():
        print(f"{plan.steps} steps of {cfg.samples_per_step} samples, {len(plan.order):,} samples in all", flush=True)
    how = Preprocessing.load(base)
    held_out = _held_out(cfg, seed, split, chat, how) if cfg.evaluation.is_on else None
    model, trainees, engine = _start(cfg, seed, base)
    checkpoints = Checkpoints(out / "checkpoints", trainees, plan.fingerprint, cfg.runtime.keep, base_hash(base))
    progress = checkpoints.resume(engine)
    rows = cfg.runtime.rows_at_once
    steps = Steps(shards, plan, chat, how, rank=ranks.rank(), ranks=ranks.world(), rows_at_once=rows)
    name = out.name.removesuffix(".partial")
    with Report(out, name, plan.steps, cfg.runtime.log_every, progress) as report:
        evaluation = Evaluation(cfg.evaluation, held_out, ask, plan, report, out)
        fit(
            engine,
            load_steps(steps, progress.step, cfg.runtime.workers),
            plan,
            progress,
            checkpoints,
            report,
            evaluation,
            how=how,
            seed=seed,
            schedule=cfg.schedule,
            warmup_ratio=cfg.warmup_ratio,
            save_every=cfg.runtime.save_every,
        )
    chosen = evaluation.only_best()
    if chosen and not Checkpoints(chosen, trainees, plan.fingerprint, 1, base_hash(base)).resume(engine).step:
        raise Unusable(f"{out}/best lacks the checkpoint of the best look: delete {out} and train again")
    write_probe(engine.module, out / PROBE)
    if ranks.first():
        _export(model, cfg, base, out)
    ranks.barrier()
    figures = {"trainable_parameters": sum(t.weight.numel() for t in trainees), "ranks": ranks.world()}
    return {**asdict(progress), **figures, **evaluation.figures()}


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
    engine = start_engine(
        PackedLoss(llava).to(ranks.device()),
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
        save_adapter(model, out / "adapter")
        model = merged(base, out / "adapter", dtype)
    link_folder(base, out / "model")
    changed = {strategy.FILES[part] for part in strategy.parts_that_train(cfg.strategy, cfg.train)}
    save_weights(model, out / "model", dtype, tuple(sorted(changed)))
