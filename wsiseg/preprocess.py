"""From pixels as read to what a network expects: the one place for training and inference.

`fit` walks over an image once, in pieces, and keeps only sums; `apply` is a pure function of pixels
and those statistics, so that a window's values do not depend on where windows are cut.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from wsiseg.geometry import Region
from wsiseg.models.card import Preprocessing
from wsiseg.sources.base import Source
from wsiseg.windows import WindowPlan


class CaseStats(BaseModel):
    """Mean and standard deviation per channel (file order) of a case; kept in its ledger."""

    model_config = ConfigDict(frozen=True)

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: int


def fit(
    source: Source, spec: Preprocessing, *, wanted: Callable[[Region], bool] | None = None
) -> CaseStats | None:
    """Statistics of the valid pixels of a case, or None where the card carries fixed ones.

    `wanted(region)` limits the pieces that count, to those with tissue say.
    """
    if spec.statistics == "card":
        return None
    total = np.zeros(source.num_channels)
    squares = np.zeros(source.num_channels)
    count = 0
    ndim = len(source.geometry.shape)
    for window in WindowPlan(shape=source.geometry.shape, core=source.block, halo=(0,) * ndim).windows():
        if wanted is not None and not wanted(window.core):
            continue
        pixels = source.read(window.core)
        values = pixels.values[:, pixels.valid].astype(np.float64)  # (C, n)
        total += values.sum(axis=1)
        squares += (values**2).sum(axis=1)
        count += values.shape[1]
    if count == 0:
        return CaseStats(mean=tuple(map(float, spec.mean)), std=tuple(map(float, spec.std)), pixels=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))  # a flat image must not divide by 0
    return CaseStats(mean=tuple(mean.tolist()), std=tuple(std.tolist()), pixels=count)


def apply(pixels: Tensor, stats: CaseStats | None, spec: Preprocessing) -> Tensor:
    """Network input (B, C, *axes) float32 from pixels (B, C, *axes) uint8 as read, on their device."""
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
    return torch.addcmul(offset.view(shape), pixels.float(), scale)
