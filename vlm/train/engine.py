"""The DeepSpeed engine: many ranks, ZeRO, mixed precision. One process is a world of one."""

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm import ranks
from vlm.train.strategy import Trainee

os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: E402 - reads the two variables above
from deepspeed.ops import __compatible_ops__  # noqa: E402

# Gloo does the same without a compiler; left on, the first start on several CPU ranks builds this for a minute.
__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

Engine = deepspeed.DeepSpeedEngine


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
    ignores a gradient norm that does not stand in its own config.
    """
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=1e-8)
    config = {
        **extra,
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
    return engine


def gradient_norm(engine: Engine) -> float:
    """Return the norm of the step's whole gradient before clipping; call between backward and step."""
    gradients = [weight.grad for weight in engine.module.parameters() if weight.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def shards_states(engine: Engine) -> bool:
    """Say whether DeepSpeed keeps its own copies of weights and optimizer states (ZeRO, bf16)."""
    return engine.optimizer is not engine.basic_optimizer


def link_states(engine: Engine) -> None:
    """Let every parameter find its optimizer state; call before `gather`.

    DeepSpeed does so after the first group's first update, when the other groups have no states yet.
    """
    if shards_states(engine):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def gather(engine: Engine, trainee: Trainee) -> dict[str, Tensor]:
    """Return a parameter's master weight and AdamW moments in full, float32, on the CPU; every rank must call."""
    if shards_states(engine):
        full = {
            "weight": trainee.weight.get_full_hp_param(),
            "exp_avg": trainee.weight.get_full_hp_param("exp_avg"),
            "exp_avg_sq": trainee.weight.get_full_hp_param("exp_avg_sq"),
        }
    else:
        state = engine.optimizer.state[trainee.weight]
        full = {"weight": trainee.weight, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in full.items()}


def begin_restore(engine: Engine, steps: int) -> None:
    """Make AdamW's states exist, as after `steps` steps, so that `restore` can fill them."""
    for group in engine.basic_optimizer.param_groups:
        for weight in group["params"]:
            engine.basic_optimizer.state[weight] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
    link_states(engine)


def restore(engine: Engine, trainee: Trainee, full: dict[str, Tensor]) -> None:
    """Set a parameter's master weight and moments from what `gather` returned, on any number of ranks."""
    weight = trainee.weight
    full = {name: tensor.to(weight.device) for name, tensor in full.items()}
    weight.data.copy_(full["weight"])
    if shards_states(engine):
        weight.set_full_hp_param(full["weight"])
        weight.set_full_hp_param(full["exp_avg"], "exp_avg")
        weight.set_full_hp_param(full["exp_avg_sq"], "exp_avg_sq")
    else:
        state = engine.optimizer.state[weight]
        state["exp_avg"].copy_(full["exp_avg"])
        state["exp_avg_sq"].copy_(full["exp_avg_sq"])
