"""The network that a training begins with: built, filled from another card, frozen in part."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from wsiseg.errors import ManifestError, ModelError
from wsiseg.models.card import ModelCard
from wsiseg.models.foreign import in_short
from wsiseg.models.registry import build_network, load_network
from wsiseg.models.zoo import load_card
from wsiseg.training.losses import check_outputs
from wsiseg.training.run import Run
from wsiseg.training.sections import Start

logger = logging.getLogger(__name__)

LISTED = 20
"""Names of layers that were not taken, as far as a card lists them."""
NORMS = (nn.modules.batchnorm._BatchNorm,)


def build(run: Run) -> nn.Module:
    """The network of a run with random weights of its seed, in training mode."""
    torch.manual_seed(run.seed)
    network = build_network(run.network.name, **run.network.arguments)
    if run.network.name == "espnet3d":
        give_each_class_a_channel(network)
    return network.train()


def filled(run: Run, state: dict[str, Tensor]) -> nn.Module:
    """The network of a run with given weights, in eval mode on the CPU.

    One that was trained cannot be copied: some of MONAI's keep the last step's features.
    """
    network = build(run)
    network.load_state_dict(state)
    return network.eval()


def give_each_class_a_channel(network: nn.Module) -> None:
    """Let the last convolution, one voxel wide, begin as the identity.

    Nothing that comes into it is negative (ReLU) and it has no bias: a class that random weights all
    make negative cannot score above 0 anywhere, and one structure was never found in a whole training.
    """
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)][-1]
    nn.init.dirac_(last.weight)


def try_network(run: Run) -> None:
    """Put one small batch through the network. Raises ManifestError where it does not suit the run."""
    network = build(run)
    sides = " x ".join(map(str, run.patch))
    try:
        with torch.no_grad():
            made = network(torch.zeros(min(2, run.patches.batch), run.channels, *run.patch))
    except Exception as err:  # noqa: BLE001 - what others' networks raise is theirs to choose
        raise ManifestError(
            f"the network {run.network.name} cannot be trained on patches of {sides} pixels and "
            f"{run.channels} channels: {in_short(err)}"
        ) from None
    check_outputs(run, network, made)
    for name in _named_layers(run.start):
        if not any(_within(key, name) for key, _ in network.named_parameters()):
            raise ManifestError(f"start names layers {name!r}, which the network does not have")


def _named_layers(start: Start | None) -> list[str]:
    if start is None:
        return []
    return [*start.freeze, *(name for later in start.unfreeze for name in later.layers)]


def check_start(run: Run) -> ModelCard | None:
    """The card that a run starts from. Raises ModelError where there is none."""
    return None if run.start is None else load_card(run.start.card)


def take_over(run: Run, network: nn.Module) -> dict[str, Any]:
    """Copy every layer of the start's card that fits by name and shape; says which did.

    Raises ModelError where none fits.
    """
    if run.start is None:
        return {}
    card = load_card(run.start.card)
    given, own = load_network(run.start.card).state_dict(), network.state_dict()
    fitting = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    learned = dict(network.named_parameters())
    taken = [key for key in fitting if key in learned]
    if not taken:
        raise ModelError(f"no layer of {card.name} ({card.network.name}) fits the network {run.network.name}")
    network.load_state_dict(fitting, strict=False)
    left = [key for key in learned if key not in fitting]
    logger.info("%d of %d layers are those of %s; at random: %s", len(taken), len(learned), card.name,
                ", ".join(left) or "none")  # fmt: skip
    if card.preprocessing != run.preprocessing:
        logger.warning("%s was trained with another preprocessing than this run's", card.name)
    return {
        "from": card.name,
        "layers taken": len(taken),
        "parameters taken": sum(learned[key].numel() for key in taken),
        "layers at random": len(left),
        "first layers at random": left[:LISTED],
    }


def frozen_at(start: Start | None, step: int, names: list[str]) -> set[str]:
    """The parameters that do not learn at a step; what is unfrozen stays so."""
    if start is None:
        return set()
    free = {name for later in start.unfreeze if step >= later.step for name in later.layers}
    return {
        key
        for key in names
        if any(_within(key, part) for part in start.freeze) and not any(_within(key, part) for part in free)
    }


def freeze(network: nn.Module, frozen: set[str]) -> None:
    """Let only the other parameters learn; norms whose weights are frozen keep their statistics too."""
    network.train()
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key not in frozen)
        if key in frozen:
            parameter.grad = None
    for module in network.modules():
        if isinstance(module, NORMS):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def _within(key: str, part: str) -> bool:
    return key == part or key.startswith(part + ".")
