"""A network on a device, from pixels as read to scores."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.errors import UsageError
from wsiseg.models.card import ModelCard
from wsiseg.models.registry import load_card, load_network
from wsiseg.preprocess import CaseStats, apply

UPSAMPLING = {1: "linear", 2: "bilinear", 3: "trilinear"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library


@dataclass(frozen=True)
class Outputs:
    """What a network says: `scores` (B, K, *window) on its device, and values per window."""

    scores: Tensor
    per_window: dict[str, Tensor] = field(default_factory=dict)


class Predictor(Protocol):
    """A network with its preprocessing, on a device."""

    @property
    def card(self) -> ModelCard: ...

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Scores (B, K, *window) for images (B, C, *window) as read."""
        ...


class NetworkPredictor:
    """A torch network as a predictor; `stats` are the case's, where the card asks for them."""

    def __init__(
        self, card: ModelCard, network: nn.Module, *, device: torch.device, stats: CaseStats | None = None
    ) -> None:
        self.card = card
        self.device = device
        self._stats = stats
        self._format = torch.channels_last_3d if card.axes == "zyx" else torch.channels_last
        self._network = network.to(device).to(memory_format=self._format)  # type: ignore[call-overload]

    def for_case(self, stats: CaseStats | None) -> NetworkPredictor:
        """The same network with the statistics of another case."""
        return NetworkPredictor(self.card, self._network, device=self.device, stats=stats)

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(self.device)
            inputs = apply(pixels, self._stats, self.card.preprocessing)  # (B, C, *window)
            scores = self._network(inputs.contiguous(memory_format=self._format))  # (B, K, *window / scale)
            if self.card.windows.output_scale > 1:
                scores = functional.interpolate(
                    scores,
                    scale_factor=self.card.windows.output_scale,
                    mode=UPSAMPLING[len(self.card.axes)],
                    align_corners=False,
                )
        return Outputs(scores)


def pick_device(name: str) -> torch.device:
    """A torch device by name; "auto" is the GPU if there is one. Raises UsageError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} is not there: {torch.cuda.device_count()} CUDA devices were found")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def load_predictor(model: str | Path, device: str = "auto") -> NetworkPredictor:
    """The predictor of a zoo name or the path of a card. Raises ModelError, UsageError."""
    picked = pick_device(device)
    return NetworkPredictor(load_card(model), load_network(model), device=picked)


def keep_memory() -> None:
    """Let the GNU C library keep freed memory instead of returning it after each layer.

    Fresh pages for every activation cost a quarter of the time of a forward pass on a CPU. Called
    once at start-up; elsewhere than on glibc it does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def execution_record(device: torch.device) -> dict[str, Any]:
    """What of the machine and its libraries can change a float."""
    if device.type == "cuda":
        return {"backend": "torch", "torch": torch.__version__, "device": torch.cuda.get_device_name(device)}
    return {
        "backend": "torch",
        "torch": torch.__version__,
        "device": "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
