"""The DeepSpeed engine: many ranks, ZeRO, mixed precision. One process is a world of one."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm import ranks
from vlm.config import Recompute
from vlm.model.recomputed import keep_inputs_alone
from vlm.train.memory import zero_stage
from vlm.train.strategy import Trainee, shape_of

os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: E402 - reads the two variables above
from deepspeed.ops import __compatible_ops__  # noqa: E402
from deepspeed.runtime.zero import GatheredParameters  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

# Gloo does the same without a compiler; left on, the first start on several CPU ranks builds this for a minute.
__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

Engine = deepspeed.DeepSpeedEngine
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names for its two


def join_ranks() -> None:
    """Meet the other ranks, or be a world of one when no launcher set the variables."""
    if dist.is_initialized():
        return
    backend = "gloo" if ranks.device().type == "cpu" else "cpu:gloo,cuda:nccl"
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def lighten(language_model: nn.Module, recompute: Recompute, compiled: bool) -> None:
    """Have the layers of the language model, never of the tower, recompute what they can, and compile them.

    full keeps what goes into a layer and computes the layer again; selective keeps the results of matrix products and
    attention and computes norms and gates again (vlm/model/recomputed.py), which is little work and much memory; a
    compiled layer chooses for itself what it keeps. On a GPU norms are one kernel, which keeps their inputs alone.
    """
    if not compiled and (recompute is Recompute.selective or ranks.device().type == "cuda"):
        keep_inputs_alone(language_model, gates=recompute is Recompute.selective)
    if compiled:
        torch._dynamo.config.specialize_float = True  # scales else are tensors of the CPU, with C++ to compile for them
    for layer in language_model.layers:
        forward = _compiled(layer.forward) if compiled else layer.forward
        layer.forward = partial(checkpoint, forward, use_reentrant=False) if recompute is Recompute.full else forward


def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a layer's forward, compiled for training on batches of any length; without gradients it is what it was."""
    trains = torch.compile(forward, dynamic=True)

    def run(*given: Any, **named: Any) -> Tensor:  # noqa: ANN401 - the layer's own arguments
        return (trains if torch.is_grad_enabled() else forward)(*given, **named)

    return run


def start_engine(
    model: nn.Module,
    groups: list[dict[str, Any]],
    *,
    betas: tuple[float, float],
    max_grad_norm: float,
    bfloat16: bool,
    extra: dict[str, Any],
) -> Engine:
    """Wrap a model whose parameter groups are `groups` (vlm/train/strategy.py) in a DeepSpeed engine.

    `extra` holds DeepSpeed's own keys; clipping, precision and batch bookkeeping are set here, since DeepSpeed
    ignores a gradient norm that does not stand in its own config. In bfloat16 stage 0 is carried out as stage 1.
    """
    zero = {**extra.get("zero_optimization", {}), "stage": zero_stage(extra, bfloat16=bfloat16)}
    is_fused = ranks.device().type == "cuda"  # no copies of gradients and moments on the way
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=1e-8, fused=is_fused)
    config = {
        **extra,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,  # bookkeeping only: the loop says where a step ends
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bfloat16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    weights = [weight for group in groups for weight in group["params"]]
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, model_parameters=weights, config=config)
    if shards_weights(engine):
        _keep_whole(engine, [module for name, module in model.named_modules() if name.split(".")[-1] == "lm_head"])
    return engine


def gradient_norm(engine: Engine) -> float:
    """Return the norm of the step's whole gradient before clipping; call between backward and step."""
    gradients = [weight.grad for weight in engine.module.parameters() if weight.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def update(engine: Engine, norm: float | None) -> tuple[float, bool]:
    """Clip and step, unless the gradient is not finite; return its norm and whether the weights were updated.

    `norm` is `gradient_norm`'s where DeepSpeed keeps no states of its own, else None: DeepSpeed then computes it and
    skips by itself. All ranks see the same norm, so they agree.
    """
    if norm is None:
        engine.step()
        norm = float(engine.get_global_grad_norm())
        return norm, engine.was_step_applied()
    if not math.isfinite(norm):
        engine.zero_grad()
        return norm, False
    engine.step()
    return norm, True


def shards_weights(engine: Engine) -> bool:
    """Say whether every rank holds only a part of each weight between its uses (ZeRO-3)."""
    return engine.zero_optimization_stage() == 3


def shards_states(engine: Engine) -> bool:
    """Say whether DeepSpeed keeps its own copies of weights and optimizer states (ZeRO, bf16)."""
    return engine.optimizer is not engine.basic_optimizer


def link_states(engine: Engine) -> None:
    """Let every parameter find its optimizer state; call before `gather`.

    DeepSpeed does so after the first group's first update, when the other groups have no states yet.
    """
    if shards_states(engine) and not shards_weights(engine):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def gather(engine: Engine, trainee: Trainee) -> dict[str, Tensor]:
    """Return a parameter's master weight and AdamW moments in full, float32, on the CPU; every rank must call."""
    if shards_states(engine):
        full = {key: safe_get_full_optimizer_state(trainee.weight, key) for key in MOMENTS}
        full["weight"] = safe_get_full_fp32_param(trainee.weight)
    else:
        full = {"weight": trainee.weight, **{key: engine.optimizer.state[trainee.weight][key] for key in MOMENTS}}
    shape = shape_of(trainee.weight)
    return {name: tensor.detach().to("cpu", torch.float32).view(shape) for name, tensor in full.items()}


def begin_restore(engine: Engine, updates: int) -> None:
    """Make AdamW's states exist, as after `updates` updates, so that `restore` can fill them."""
    if shards_weights(engine):
        weights = engine.optimizer.fp32_partitioned_groups_flat
    else:
        weights = [weight for group in engine.basic_optimizer.param_groups for weight in group["params"]]
    for weight in weights:
        moments = {key: torch.zeros_like(weight) for key in MOMENTS}
        step = torch.tensor(float(updates), device=weight.device if engine.basic_optimizer.defaults["fused"] else "cpu")
        engine.basic_optimizer.state[weight] = {"step": step, **moments}
    link_states(engine)


def restore(engine: Engine, trainee: Trainee, full: dict[str, Tensor]) -> None:
    """Set a parameter's master weight and moments from what `gather` returned, on any number of ranks."""
    weight = trainee.weight
    full = {name: tensor.to(weight.device) for name, tensor in full.items()}
    with whole(engine, [weight]):
        weight.data.copy_(full["weight"])
    if shards_states(engine):
        safe_set_full_fp32_param(weight, full["weight"])
        for key in MOMENTS:
            safe_set_full_optimizer_state(weight, full[key], key)
    else:
        for key in MOMENTS:
            engine.optimizer.state[weight][key].copy_(full[key])


def end_restore(engine: Engine) -> None:
    """Bring the weights that every rank holds whole up to date, after the last `restore`."""
    if shards_weights(engine) and (held := engine.optimizer.persistent_parameters):
        held[0].all_gather(held)


@contextmanager
def whole(engine: Engine, weights: list[nn.Parameter]) -> Iterator[None]:
    """Hold weights whole inside the block, and keep what rank 0 writes into them; every rank must enter."""
    if not shards_weights(engine):
        yield
        return
    with GatheredParameters(weights, modifier_rank=0):
        yield


def dissolve(engine: Engine) -> None:
    """Give the model its weights back whole, on the first rank's CPU, when training is over; every rank must call."""
    if not shards_weights(engine):
        return
    found = {}
    for name, weight in engine.module.named_parameters():
        with GatheredParameters([weight]):
            if ranks.first():
                found[name] = weight.detach().to("cpu", copy=True)
    weights = dict(engine.module.named_parameters())
    engine.destroy()
    for name, full in found.items():
        weights[name].data = full


def _keep_whole(engine: Engine, modules: list[nn.Module]) -> None:
    """Let every rank hold some modules' weights whole: those that ranks do not use equally often.

    `lm_head` runs once for each chunk of a rank's targets; gathering it each time would make ranks wait for ever.
    """
    held = engine.optimizer.persistent_parameters
    for weight in (weight for module in modules for weight in module.parameters()):
        if not weight.ds_persist:
            weight.ds_persist = True
            held.append(weight)
    end_restore(engine)
