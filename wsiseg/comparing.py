"""Two label grids of one shape compared block by block: memory does not grow with their size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wsiseg.annotations.labels import Labels, decoded
from wsiseg.classes import VOID
from wsiseg.geometry import Region
from wsiseg.metrics import ConfusionMatrix
from wsiseg.reliability import SURE, Calibration, Reliability
from wsiseg.sources.base import Array
from wsiseg.windows import WindowPlan

SCORE_BLOCK_PX = 1 << 22
"""Pixels that are compared at a time, whatever the number of axes."""


def blocks(shape: tuple[int, ...]) -> Iterator[Region]:
    """Regions that partition a grid: memory does not grow with its size."""
    ndim = len(shape)
    side = int(SCORE_BLOCK_PX ** (1 / ndim))
    plan = WindowPlan(shape=shape, core=(side,) * ndim, halo=(0,) * ndim)
    return (window.core for window in plan.windows())


def confusion(prediction: Labels, truth: Labels, *, num_classes: int) -> ConfusionMatrix:
    """Confusion of two label grids of one shape, block by block."""
    total = ConfusionMatrix.empty(num_classes)
    for block in blocks(truth.shape):
        total += ConfusionMatrix.of(
            truth=truth.read(block), prediction=prediction.read(block), num_classes=num_classes
        )
    return total


def calibration(
    confidence: Array, prediction: Labels, truth: Labels, *, background: int | None = None
) -> Calibration:
    """How far the confidence (*grid) uint8 of a prediction can be trusted, block by block.

    Of pixels that truth states and a network decided; what both call background does not count: there is
    much of it, and it is easy.
    """
    pixels, right = np.zeros((2, SURE + 1), np.int64)
    for block in blocks(truth.shape):
        sure = decoded(confidence, block, name="the confidence of the prediction")
        stated, predicted = truth.read(block), prediction.read(block)
        counted = (sure > 0) & (stated != VOID) & (predicted != VOID)
        if background is not None:
            counted &= (stated != background) | (predicted != background)
        pixels += np.bincount(sure[counted], minlength=SURE + 1)
        right += np.bincount(sure[counted & (stated == predicted)], minlength=SURE + 1)
    values = np.arange(SURE + 1) / SURE
    return Reliability.of(values, pixels=pixels, right=right).table
