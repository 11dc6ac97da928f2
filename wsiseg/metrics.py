"""Scores from one confusion matrix that adds up over regions, cases and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from wsiseg.classes import VOID, MaskClass


@dataclass(frozen=True)
class ConfusionMatrix:
    """Pixel counts (K, K) int64: rows truth, columns prediction; `void` pixels counted nowhere."""

    counts: NDArray[np.int64]
    void: int = 0

    @classmethod
    def empty(cls, num_classes: int) -> Self:
        """A matrix without counts."""
        return cls(np.zeros((num_classes, num_classes), np.int64))

    @classmethod
    def of(cls, *, truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_classes: int) -> Self:
        """Counts of two masks of one shape; VOID on either side counts nowhere. Raises ValueError."""
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
        counted = (truth != VOID) & (prediction != VOID)
        t, p = truth[counted].astype(np.int64), prediction[counted]
        highest = max(int(t.max(initial=0)), int(p.max(initial=0)))
        if highest >= num_classes:
            raise ValueError(f"class {highest} is not among the {num_classes} classes")
        pairs = np.bincount(t * num_classes + p, minlength=num_classes**2)
        return cls(pairs.reshape(num_classes, num_classes), void=int(truth.size - t.size))

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix(self.counts + other.counts, self.void + other.void)


class ClassScore(BaseModel):
    """Scores of one class; None where its denominator is zero ("absent")."""

    model_config = ConfigDict(frozen=True)

    index: int
    name: str
    iou: float | None
    dice: float | None
    precision: float | None
    recall: float | None
    truth_pixels: int
    predicted_pixels: int

    @property
    def absent(self) -> bool:
        """True where neither truth nor prediction has the class."""
        return self.iou is None


class Scores(BaseModel):
    """Agreement of a prediction with truth over all counted pixels."""

    model_config = ConfigDict(frozen=True)

    classes: tuple[ClassScore, ...]
    pixel_accuracy: float | None
    mean_iou: float | None
    frequency_weighted_iou: float | None
    counted_pixels: int
    void_pixels: int
    confusion: tuple[tuple[int, ...], ...]


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def score(matrix: ConfusionMatrix, classes: Sequence[MaskClass]) -> Scores:
    """Per-class and overall scores.

    The mean is over classes present in truth or prediction; frequencies are those of the truth.
    """
    counts = matrix.counts
    hits, truth, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    union = truth + predicted - hits
    rows = tuple(
        ClassScore(
            index=c.index,
            name=c.name,
            iou=_ratio(hits[k], union[k]),
            dice=_ratio(2 * hits[k], truth[k] + predicted[k]),
            precision=_ratio(hits[k], predicted[k]),
            recall=_ratio(hits[k], truth[k]),
            truth_pixels=int(truth[k]),
            predicted_pixels=int(predicted[k]),
        )
        for k, c in enumerate(classes)
    )
    present = [row.iou for row in rows if row.iou is not None]
    total = int(counts.sum())
    weighted = sum(row.truth_pixels * row.iou for row in rows if row.iou is not None)
    return Scores(
        classes=rows,
        pixel_accuracy=_ratio(hits.sum(), total),
        mean_iou=_ratio(sum(present), len(present)),
        frequency_weighted_iou=_ratio(weighted, total),
        counted_pixels=total,
        void_pixels=matrix.void,
        confusion=tuple(tuple(row) for row in counts.tolist()),
    )
