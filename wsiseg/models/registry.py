"""Networks by name, and with the weights of their cards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsiseg.errors import ModelError
from wsiseg.models.averaging import Ensemble
from wsiseg.models.card import ModelCard, read_card
from wsiseg.models.espnet import build_espnet
from wsiseg.models.espnet3d import build_espnet3d
from wsiseg.models.espnetv2 import build_espnetv2
from wsiseg.models.foreign import (
    EXPORTED,
    MONAI,
    MONAI_NETWORKS,
    REFUSALS,
    build_foreign,
    in_short,
    is_foreign,
    load_exported,
)
from wsiseg.models.mrseg import build_mrseg
from wsiseg.models.segnet import build_segnet
from wsiseg.models.weights import check_weights, load_weights
from wsiseg.models.ynet import build_ynet
from wsiseg.models.zoo import card_path


def _build_ensemble(*, members: list[dict[str, Any]], temperatures: list[float]) -> nn.Module:
    networks = [build_network(member["name"], **member["arguments"]) for member in members]
    return Ensemble(networks, temperatures=temperatures)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "espnet": build_espnet,
    "espnet3d": build_espnet3d,
    "espnetv2": build_espnetv2,
    "mrseg": build_mrseg,
    "segnet": build_segnet,
    "ynet": build_ynet,
    "ensemble": _build_ensemble,
}


def build_network(name: str, /, *, trust_code: bool = False, **arguments: Any) -> nn.Module:
    """A network with torch's default weights, in training mode.

    `"espnet"` takes classes, channels=3, p=2, q=3, variant="A" | "B" | "C", ndim=2.
    `"espnet3d"` takes classes=4, channels=4, width=1.0, refinement=True, align_corners=None,
    working_size=None | "rounded" | "given" | a size, ndim=3. `"mrseg"` and `"segnet"` take
    classes=8, channels=3.
    `"espnetv2"` takes classes, channels=3, scale=1.0, decoder_width=64 | 128, ndim=2.
    `"ynet"` takes classes=8, channels=3, encoder="C1" | "D1", diagnoses=None, align_corners=True.

    `"ensemble"` takes members (name and arguments of each) and temperatures.

    `"monai:NAME"` takes what MONAI's network of that name takes, `"python:module:function"` what that
    function takes; the latter runs foreign code and needs `trust_code`. Raises ModelError for an
    unknown name or arguments that the network does not take.
    """
    if is_foreign(name):
        return build_foreign(name, arguments, trust_code=trust_code)
    if name not in NETWORKS:
        known = [*sorted(NETWORKS), *(MONAI + n for n in MONAI_NETWORKS)]
        raise ModelError(f"unknown network {name!r}; known are: {', '.join(known)}")
    try:
        return NETWORKS[name](**arguments)
    except REFUSALS as err:
        raise ModelError(f"network {name!r} cannot be built with {arguments}: {in_short(err)}") from None


def load_network(model: str | Path, *, trust_code: bool = False) -> nn.Module:
    """The network of a card with its weights, in eval mode on the CPU.

    Raises ModelError if the weights are missing, have another sha256 than the card says, or do not fit,
    and for a card that would run code which the user does not trust.
    """
    path = card_path(model)
    card = read_card(path)
    weights = path.parent / card.weights
    if card.network.name in EXPORTED.values():
        check_weights(weights, sha256=card.sha256)
        return load_exported(card.network.name, weights, trust_code=trust_code).eval()
    network = build_network(card.network.name, trust_code=trust_code, **card.network.arguments)
    load_weights(network, weights, sha256=card.sha256)
    return network.eval()


def structure(card: ModelCard, *, trust_code: bool = False) -> nn.Module:
    """The network of a card without its weights, in eval mode. Raises ModelError where these are one."""
    name = card.network.name
    if name in EXPORTED.values():
        raise ModelError(f"an exported graph ({name}) is not followed layer by layer")
    # Only the structure matters; not every constructor of others works without memory behind it.
    with torch.device("cpu" if is_foreign(name) else "meta"):
        return build_network(name, trust_code=trust_code, **card.network.arguments).eval()
