"""What a network costs: parameters, multiplications, memory; found by running it without numbers."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from wsiseg.errors import ModelError
from wsiseg.models.card import ModelCard
from wsiseg.models.foreign import EXPORTED, in_short
from wsiseg.models.registry import load_network, structure
from wsiseg.models.weights import check_weights
from wsiseg.models.zoo import card_path

MEGA = 1e6


@dataclass(frozen=True)
class Facts:
    """Figures of a network for a window of `window` pixels."""

    parameters: int | None
    """None: an exported graph keeps them to itself."""
    window: tuple[int, ...]
    gmacs_per_megapixel: float | None
    """Billions of multiply-accumulates per million input pixels (voxels); None: cannot be counted."""
    activation_mb_per_megapixel: float | None
    """Largest sum of all features that are alive at one time, 4 bytes each."""


class _Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def network_facts(network: nn.Module, window: tuple[int, ...], *, channels: int) -> Facts:
    """Figures of a network in evaluation for windows of that shape; nothing is computed.

    Multiplications are those of convolutions and matrix products. Raises ModelError.
    """
    parameters = sum(p.numel() for p in network.parameters())
    pixels = math.prod(window)
    network = network.to("meta").eval()
    counter, alive = FlopCounterMode(display=False), _Alive()
    try:
        with torch.no_grad(), counter:
            network(torch.empty(1, channels, *window, device="meta"))
        with torch.no_grad(), alive:
            network(torch.empty(1, channels, *window, device="meta"))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as err:
        raise ModelError(
            f"the network's cost for {window} pixels cannot be counted: {in_short(err)}"
        ) from None
    return Facts(
        parameters,
        window,
        gmacs_per_megapixel=counter.get_total_flops() / 2 / 1e9 / (pixels / MEGA),
        activation_mb_per_megapixel=alive.peak / MEGA / (pixels / MEGA),
    )


def card_facts(card: ModelCard, model: str, *, trust_code: bool = False) -> Facts:
    """Figures of a card's network for its own windows. Raises ModelError."""
    side = card.windows.core + 2 * (card.windows.halo or 0)
    window = card.windows.sides or (side,) * len(card.axes)
    if card.network.name in EXPORTED.values():
        load_network(model, trust_code=trust_code)
        return Facts(None, window, None, None)
    check_weights(card_path(model).parent / card.weights, sha256=card.sha256)
    network = structure(card, trust_code=trust_code)
    return network_facts(network, window, channels=card.channels)
