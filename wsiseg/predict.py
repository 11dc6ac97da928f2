"""A network on a device, from pixels as read to scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.backends import check, compile_network, fastest, versions
from wsiseg.config import Backend, Precision, SegmentConfig, Views
from wsiseg.errors import ModelError, UsageError
from wsiseg.execute.kernels import NUMBA, Floats, Table, by_pixel, in_parts, look_up
from wsiseg.models.averaging import OverViews
from wsiseg.models.card import ModelCard
from wsiseg.models.inference import for_inference
from wsiseg.models.layers import LINEAR
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import load_card
from wsiseg.preprocess import CaseStats, apply


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


def understood(card: ModelCard, made: Any, inputs: Tensor) -> Outputs:
    """What a network said of its inputs (B, C, *window), on their grid. Raises ModelError."""
    scores, *others = made if isinstance(made, tuple | list) else (made,)  # (B, K, *window / scale)
    windows = card.windows
    _check(card, scores, others, inputs)
    if windows.output_scale != 1:
        scores = functional.interpolate(
            scores,
            scale_factor=windows.output_scale,
            mode=LINEAR[len(card.axes)],
            align_corners=False,
        )
    if windows.output_region is not None:
        first, count = windows.output_region
        sides = ((first, n - first - count) for n in reversed(inputs.shape[2:]))
        scores = functional.pad(scores, [n for side in sides for n in side])
    # What a network returns besides is not for the mask, and is named on the card or left.
    per_window = {"diagnosis": others[0].softmax(dim=1)} if card.diagnoses else {}
    return Outputs(torch.as_tensor(scores), per_window)


def _check(card: ModelCard, scores: Tensor, others: list[Any], inputs: Tensor) -> None:
    """Raises ModelError where a network puts out something else than its card says."""
    windows = card.windows
    sides = tuple(n // windows.output_scale for n in inputs.shape[2:])
    if windows.output_region is not None:
        sides = (windows.output_region[1],) * len(sides)
    expected = (len(card.classes), *sides)
    if tuple(scores.shape[1:]) != expected:
        raise ModelError(
            f"model {card.name} puts out {tuple(scores.shape[1:])} scores for a window, its card says "
            f"{expected}: classes, then sides"
        )
    found = tuple(others[0].shape[1:]) if others and isinstance(others[0], Tensor) else ()
    if card.diagnoses and found != (len(card.diagnoses),):
        raise ModelError(
            f"model {card.name} puts out {found or 'no'} diagnoses for a window, its card names "
            f"{len(card.diagnoses)}"
        )


MEASURED_PX = 1 << 25
"""Pixels of an image from which it is worth to measure which back end is the fastest."""
DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class NetworkPredictor:
    """A torch network as a predictor; `stats` are the case's, where the card asks for them."""

    def __init__(
        self,
        card: ModelCard,
        network: nn.Module,
        *,
        device: torch.device,
        stats: CaseStats | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.card = card
        self.device = device
        self._stats = stats
        self._precision = precision
        self._format = torch.channels_last_3d if card.axes == "zyx" else torch.channels_last
        ready = for_inference(network, dtype=DTYPES[precision])
        self.network: nn.Module = ready.to(device).to(memory_format=self._format)  # type: ignore[call-overload]
        self._takes = DTYPES[precision]

    def for_case(self, stats: CaseStats | None) -> NetworkPredictor:
        """The same network with the statistics of another case."""
        made = copy.copy(self)
        made._stats = stats
        made.__dict__.pop("_table", None)
        return made

    def for_execution(self, execution: dict[str, Any]) -> NetworkPredictor:
        """The same with the back end of a plan, then for its batches of windows only. Raises ModelError."""
        backend = execution.get("backend", "torch")
        if backend == "torch":
            return self
        made = copy.copy(self)
        shape = (execution["batch"], self.card.channels, *execution["window"])
        made.network = compile_network(
            copy.deepcopy(self.network).float(), shape,
            backend=backend, precision=self._precision, threads=execution["threads"],
        )  # fmt: skip
        made._takes = torch.float32  # a back end casts by itself
        return made

    def inputs(self, pixels: Tensor) -> Tensor:
        """What the network takes (B, C, *window), from pixels as read, on its device."""
        if pixels.dtype == torch.uint8 and pixels.device.type == "cpu":
            return self._looked_up(pixels).to(self._takes)
        made = apply(pixels, self._stats, self.card.preprocessing)
        return made.to(self._takes).contiguous(memory_format=self._format)

    def _looked_up(self, pixels: Tensor) -> Tensor:
        """The same from a table: a byte has 256 values, and one pass over memory is enough."""
        made = torch.empty(pixels.shape, memory_format=self._format)
        values, found = by_pixel(pixels), by_pixel(made)
        table, order = self._table
        in_parts(lambda part: look_up(values[part], table, order, found[part]), len(found))
        return made

    @cached_property
    def _table(self) -> tuple[Floats, Table]:
        """What `apply` makes of every byte (C, 256), and which channel of an image each channel is."""
        channels = self.card.channels
        every = torch.arange(256, dtype=torch.uint8).expand(1, channels, 256)
        numbers = torch.arange(channels, dtype=torch.uint8).view(1, channels, 1)
        spec = self.card.preprocessing
        order = numbers.flip(1) if spec.channel_order == "BGR" else numbers
        return apply(every, self._stats, spec)[0].numpy(), order.flatten().numpy().astype(np.int64)

    def outputs(self, inputs: Tensor) -> Outputs:
        """Scores (B, K, *window) on the grid of the inputs, and the probabilities of the diagnoses (B, D)."""
        return understood(self.card, self.network(inputs), inputs)

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            return self.outputs(self.inputs(torch.from_numpy(images).to(self.device)))


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


def load_predictor(
    model: str | Path,
    device: str = "auto",
    *,
    trust_code: bool = False,
    views: Views = "none",
    precision: Precision = "float32",
) -> NetworkPredictor:
    """The predictor of a zoo name or the path of a card; what `trust_code` allows, see `load_network`.

    With `views` its scores are means of probabilities over these. Raises ModelError, UsageError.
    """
    picked = pick_device(device)
    if picked.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # a float32 of 10 bits is not what the plan records
    card, network = load_card(model), load_network(model, trust_code=trust_code)
    if views != "none":
        try:
            network = OverViews(
                network,
                views=views,
                axes=len(card.axes),
                temperature=None if card.scores == "probabilities" else card.temperature,
            )
        except ValueError as err:
            raise UsageError(f"views {views!r}: {err}") from None
        card = card.model_copy(update={"scores": "probabilities", "temperature": 1.0})
    return NetworkPredictor(card, network, device=picked, precision=precision)


def use_threads(count: int | None) -> None:
    """Give the network so many threads of the CPU; None on a GPU."""
    if count is not None:
        torch.set_num_threads(count)


def choose_backend(
    model: str | Path,
    card: ModelCard,
    config: SegmentConfig,
    execution: dict[str, Any],
    *,
    device: torch.device,
    threads: int,
    before: dict[str, Any],
) -> dict[str, Any]:
    """What computes the network, and with which numbers, for the store's plan.

    `execution` is what has been chosen so far, `before` what a begun store recorded. Raises UsageError
    where this machine does not have what was asked for, or streaming cannot use it.
    """
    asked = before.get("backend", "auto") if config.backend == "auto" else config.backend
    chosen: Backend = "torch" if asked == "auto" else asked
    check(chosen, config.precision, device=device)
    windowed = execution["executor"] == "windowed"
    if chosen != "torch" and not windowed:
        raise UsageError(f"backend {chosen!r} computes windows; use it with --executor windowed")
    large = windowed and math.prod(execution["model_grid"]) >= MEASURED_PX and device.type == "cpu"
    if asked == "auto" and large and config.views == "none":
        # As torch would run it: a network without what makes it fast there would lose to any other.
        use_threads(threads)
        plain = load_predictor(model, "cpu", trust_code=config.trust_code, precision=config.precision)
        batch = (execution["batch"], card.channels, *execution["window"])
        chosen = fastest(plain.network, batch, name=card.name, precision=config.precision, threads=threads)
    return {**execution_record(device, chosen), "precision": config.precision}


def execution_record(device: torch.device, backend: Backend = "torch") -> dict[str, Any]:
    """What of the machine and its libraries can change a float."""
    used = {"backend": backend, "torch": torch.__version__, **versions(backend)}
    if device.type == "cuda":
        return {**used, "device": torch.cuda.get_device_name(device)}
    return {
        **used,
        "device": "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "numba": NUMBA,
    }
