"""The loop that both backbones are trained by."""

import torch

from vlm.demo.training import Training, descend


def test_it_goes_down_the_loss_at_a_rate_that_rises_and_falls_to_nothing():
    weight = torch.nn.Parameter(torch.tensor([4.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    rates = []

    def loss_of_step(step: int) -> torch.Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return weight.square().sum()

    descend("test", Training(steps=60, batch=1, lr=0.1, warmup=0.1), [weight], [optimizer], loss_of_step)
    assert weight.item() < 1.0
    assert rates.index(max(rates)) == 5  # the last of the warm-up
    assert rates[-1] < 0.01
