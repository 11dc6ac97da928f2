"""From pixels as read to what a network expects: the one place for training and inference.

`fit` walks over an image in pieces and keeps only sums; `apply` is a pure function of pixels and
those statistics, so that a window's values do not depend on where windows are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from wsiseg.geometry import Region
from wsiseg.models.card import Preprocessing
from wsiseg.sources.base import Array, Source
from wsiseg.windows import WindowPlan

BINS = 4096
"""Of the histogram from which percentiles are read, between the lowest and the highest value."""

GLASS = 220
"""A pixel that is as bright in every channel (optical density below 0.15) has no stain.

Source: Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009, whose
threshold it is.
"""


class CaseStats(BaseModel):
    """What is subtracted and what is divided by, per channel (file order); kept in the case's ledger.

    The mean and standard deviation of a case, or the lower end and the width of its range.
    """

    model_config = ConfigDict(frozen=True)

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: int


@dataclass
class _Sums:
    """Of one channel, over the pieces seen so far."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    lowest: float = np.inf
    highest: float = -np.inf

    def add(self, values: Array) -> None:
        """Take in some values (n,)."""
        if values.size == 0:
            return
        exact = values.astype(np.float64)
        self.count += values.size
        self.total += float(exact.sum())
        self.squares += float((exact**2).sum())
        self.lowest = min(self.lowest, float(exact.min()))
        self.highest = max(self.highest, float(exact.max()))


def fit(
    source: Source,
    spec: Preprocessing,
    *,
    wanted: Callable[[Region], bool] | None = None,
    passed: Callable[[int], None] = lambda row: None,
) -> CaseStats | None:
    """Statistics of the valid pixels of a case, or None where the card carries fixed ones.

    `wanted(region)` limits the pieces that count, to those with tissue say; `passed(row)` hears that
    rows above `row` are not read any more, in this walk over the image.
    """
    if spec.statistics == "card":
        return None
    sums = [_Sums() for _ in range(source.num_channels)]
    walk = partial(_values, source, spec, wanted, passed)
    for channels in walk():
        for own, values in zip(sums, channels, strict=True):
            own.add(values)
    if all(own.count == 0 for own in sums):
        return CaseStats(mean=tuple(map(float, spec.mean)), std=tuple(map(float, spec.std)), pixels=0)
    if spec.method == "percentiles":
        ranges = _percentiles(walk, spec, sums)
    elif spec.method == "minmax":
        ranges = [(own.lowest, own.highest - own.lowest) if own.count else (0.0, 1.0) for own in sums]
    else:
        ranges = [_moments(own) for own in sums]
    # A flat channel must not divide by 0.
    tiny = 1.0 if source.dtype == np.uint8 else 1e-6
    return CaseStats(
        mean=tuple(start for start, _ in ranges),
        std=tuple(max(width, tiny) for _, width in ranges),
        pixels=max(own.count for own in sums),
    )


def _moments(own: _Sums) -> tuple[float, float]:
    if own.count == 0:
        return 0.0, 1.0
    mean = own.total / own.count
    return mean, float(np.sqrt(max(own.squares / own.count - mean**2, 0.0)))


def _values(
    source: Source,
    spec: Preprocessing,
    wanted: Callable[[Region], bool] | None,
    passed: Callable[[int], None],
) -> Iterator[list[Array]]:
    """The values that count of every piece of an image, (n,) per channel."""
    shape = source.geometry.shape
    for window in WindowPlan(shape=shape, core=source.block, halo=(0,) * len(shape)).windows():
        passed(window.core[0].start)
        if wanted is not None and not wanted(window.core):
            continue
        pixels = source.read(window.core)
        channels = pixels.values[:, pixels.valid]  # (C, n)
        if spec.foreground == "stained":
            channels = channels[:, (channels < GLASS).any(axis=0)]
        yield [v[v != 0] if spec.foreground == "nonzero" else v for v in channels]


def _percentiles(
    walk: Callable[[], Iterator[list[Array]]], spec: Preprocessing, sums: list[_Sums]
) -> list[tuple[float, float]]:
    """Lower end and width of the range between two percentiles, to within a bin of the histogram."""
    edges = [np.linspace(own.lowest, max(own.highest, own.lowest + 1e-6), BINS + 1) if own.count else None
             for own in sums]  # fmt: skip
    counts = [np.zeros(BINS, np.int64) for _ in sums]
    for channels in walk():
        for number, (edge, values) in enumerate(zip(edges, channels, strict=True)):
            if edge is not None and values.size:
                counts[number] += np.histogram(values, bins=edge)[0]
    return [
        (0.0, 1.0) if edge is None else _between(count, edge, spec.percentiles)
        for count, edge in zip(counts, edges, strict=True)
    ]


def _between(
    counts: NDArray[np.int64], edges: NDArray[np.float64], percentiles: tuple[float, float]
) -> tuple[float, float]:
    share = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()]) * 100
    low, high = (float(np.interp(p, share, edges)) for p in percentiles)
    return low, high - low


def apply(pixels: Tensor, stats: CaseStats | None, spec: Preprocessing) -> Tensor:
    """Network input (B, C, *axes) float32 from pixels (B, C, *axes) as read, on their device."""
    if spec.channel_order == "BGR":
        pixels = pixels.flip(1)
    mean, std = spec.mean, spec.std
    if stats is not None:
        flip = slice(None, None, -1) if spec.channel_order == "BGR" else slice(None)
        mean, std = stats.mean[flip], stats.std[flip]
    shape = (1, -1, *(1,) * (pixels.ndim - 2))
    scale = torch.tensor([spec.factor / s for s in std], device=pixels.device).view(shape)
    offset = torch.tensor(
        [-m * spec.factor / s for m, s in zip(mean, std, strict=True)], device=pixels.device
    )
    made = torch.addcmul(offset.view(shape), pixels.float(), scale)
    if stats is not None and spec.method == "percentiles":
        made = made.clamp(0.0, spec.factor)
    if spec.foreground == "nonzero":
        made = made * (pixels != 0)
    return made
