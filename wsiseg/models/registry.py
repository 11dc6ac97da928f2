"""Networks by name, cards by name or path, and the two brought together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from wsiseg.errors import ModelError
from wsiseg.models.card import ModelCard, read_card
from wsiseg.models.espnet import build_espnet
from wsiseg.models.weights import load_weights

ZOO = Path(__file__).parent.parent / "zoo"
DEFAULT_MODELS = {"yx": "demo-breast8"}
"""The shipped model for each kind of input, by its axes."""

NETWORKS: dict[str, Callable[..., nn.Module]] = {"espnet": build_espnet}


def build_network(name: str, **arguments: Any) -> nn.Module:
    """A network with torch's default weights, in training mode.

    `"espnet"` takes classes, channels=3, p=2, q=3, variant="A" | "B" | "C", ndim=2. Raises
    ModelError for an unknown name or arguments that the network does not take.
    """
    if name not in NETWORKS:
        raise ModelError(f"unknown network {name!r}; known are: {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[name](**arguments)
    except (TypeError, ValueError) as err:
        raise ModelError(f"network {name!r} cannot be built: {err}") from None


def zoo_names() -> list[str]:
    """Names of the shipped models."""
    return sorted(path.stem for path in ZOO.glob("*.json"))


def card_path(model: str | Path) -> Path:
    """Path of a card given by zoo name or path. Raises ModelError if there is none."""
    shipped = ZOO / f"{model}.json"
    if str(model) in zoo_names():
        return shipped
    path = Path(model)
    if path.suffix == ".safetensors":
        path = path.with_suffix(".json")
    if path.suffix == ".json" and path.is_file():
        return path
    raise ModelError(
        f"unknown model {str(model)!r}: neither a shipped model ({', '.join(zoo_names())}) "
        "nor the path of a card (.json)"
    )


def load_card(model: str | Path) -> ModelCard:
    """The card of a model. Raises ModelError."""
    return read_card(card_path(model))


def load_network(model: str | Path) -> nn.Module:
    """The network of a card with its weights, in eval mode on the CPU.

    Raises ModelError if the weights are missing, have another sha256 than the card says, or do not fit.
    """
    path = card_path(model)
    card = read_card(path)
    network = build_network(card.network.name, **card.network.arguments)
    load_weights(network, path.parent / card.weights, sha256=card.sha256)
    return network.eval()
