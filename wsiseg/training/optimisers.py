"""How weights move: optimisers, rates by depth and by step, and the running mean of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from wsiseg.training.run import Run
from wsiseg.training.sections import Schedule

HYBRID_EPOCHS, HYBRID_CYCLES = 100, 60


def layer_groups(network: nn.Module, *, factor: float) -> list[tuple[float, list[nn.Parameter]]]:
    """Parameters with their share of the learning rate: 1 / factor for the first layer, 1 for the last.

    Layers count in the order in which the network holds them; between the ends rates grow by a constant
    ratio from layer to layer.
    """
    layers = [own for module in network.modules() if (own := list(module.parameters(recurse=False)))]
    if factor == 1.0:
        return [(1.0, list(network.parameters()))]
    last = max(1, len(layers) - 1)
    return [(factor ** (number / last - 1), own) for number, own in enumerate(layers)]


def make_optimiser(run: Run, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a run over all parameters, frozen ones too: they have no gradient."""
    how = run.optimiser
    groups: list[dict[str, Any]] = [
        {"params": own, "lr": how.learning_rate * share}
        for share, own in layer_groups(network, factor=how.depth_factor)
    ]
    if how.kind == "sgd":
        return torch.optim.SGD(
            groups,
            lr=how.learning_rate,
            momentum=how.momentum,
            weight_decay=how.weight_decay,
            nesterov=how.nesterov,
        )
    kind = torch.optim.Adam if how.kind == "adam" else torch.optim.AdamW
    return kind(groups, lr=how.learning_rate, betas=how.betas, weight_decay=how.weight_decay)


def make_schedule(run: Run, optimiser: torch.optim.Optimizer) -> LRScheduler:
    """Learning rates by step; every group keeps its share."""
    if run.schedule.kind == "one-cycle":
        highest = [float(group["lr"]) for group in optimiser.param_groups]
        return OneCycleLR(optimiser, max_lr=highest, total_steps=run.steps)
    return LambdaLR(optimiser, lambda done: rate_share(run.schedule, done, steps=run.steps))


def rate_share(schedule: Schedule, done: int, *, steps: int) -> float:
    """Share of the highest learning rate after `done` of `steps` steps."""
    left = max(0.0, 1 - done / steps)
    if schedule.kind == "step":
        return float(schedule.factor ** (done // schedule.every))
    if schedule.kind == "poly":
        return float(left**schedule.power)
    if schedule.kind == "hybrid":
        return _hybrid(min(done * HYBRID_EPOCHS // steps, HYBRID_EPOCHS - 1))
    if schedule.kind == "cosine":
        if done < schedule.warmup:
            return (done + 1) / (schedule.warmup + 1)
        part = (done - schedule.warmup) / max(1, steps - schedule.warmup)
        return schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * min(1.0, part))) / 2
    return 1.0


def _hybrid(epoch: int) -> float:
    """EdgeNets' schedule of 100 epochs, of which the highest rate is five times the base.

    Source: its trainer; twelve cycles of falling rates, then a straight fall.
    """
    if epoch == 0:
        return 0.2
    if epoch <= HYBRID_CYCLES:
        return (5 - (epoch - 1) % 5) / 5
    return 0.2 * (1 - (epoch - HYBRID_CYCLES) / (HYBRID_EPOCHS - HYBRID_CYCLES))


@torch.no_grad()
def follow(kept: nn.Module, network: nn.Module, *, decay: float) -> None:
    """Move weights and running statistics of `kept` towards those of `network`; decay 0 copies them."""
    for mean, value in zip(kept.state_dict().values(), network.state_dict().values(), strict=True):
        if decay and mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
