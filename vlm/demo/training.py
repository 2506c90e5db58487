"""The loop that both backbones are trained by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

THREADS = 2  # fixed: the number of threads decides the order of sums, and with it the last bits of the weights
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Training:
    """Length and pace of a training."""

    steps: int
    batch: int
    lr: float
    warmup: float = 0.05  # share of the steps


def descend(
    title: str,
    training: Training,
    parameters: Iterable[Tensor],
    optimizers: list[Optimizer],
    loss_of_step: Callable[[int], Tensor],
) -> None:
    """Take `training.steps` steps down the loss; the rates rise over the warmup, then fall to zero in a line."""
    parameters = list(parameters)
    warmup = max(1, round(training.warmup * training.steps))
    schedules = [
        LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (training.steps - step) / (training.steps - warmup + 1))
        )
        for optimizer in optimizers
    ]
    bar = tqdm(range(training.steps), desc=f"{title}: training", unit=" steps")
    for step in bar:
        loss = loss_of_step(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 10 == 0 or step + 1 == training.steps:
            bar.set_postfix(loss=f"{loss.item():.3f}")
