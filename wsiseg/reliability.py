"""How far probabilities can be trusted: of what was said with 80 %, 80 % should be right.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017, section 2 (reliability diagrams and the
expected calibration error).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

SURE = 255
"""The byte that stands for a probability of 1 in a store."""
BINS = 15
"""As many as the source has: bin m holds the confidences in (m / 15, (m + 1) / 15]."""


class Bin(BaseModel):
    """Pixels whose confidence lies between two bounds; without pixels there are no means."""

    model_config = ConfigDict(frozen=True)

    above: float
    up_to: float
    pixels: int
    confidence: float | None = Field(description="mean")
    accuracy: float | None = Field(description="share of pixels whose class is right")


class Calibration(BaseModel):
    """Confidence held against truth."""

    model_config = ConfigDict(frozen=True)

    expected_calibration_error: float | None = Field(
        description="mean over pixels of |confidence - accuracy| of their bin"
    )
    pixels: int
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Reliability:
    """Pixels (BINS,), sums of their confidence and numbers of right ones: adds up over pieces and cases."""

    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    right: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Self:
        """Of no pixel."""
        return cls(np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS, np.int64))

    @classmethod
    def of(cls, confidence: NDArray[Any], *, pixels: NDArray[Any], right: NDArray[Any]) -> Self:
        """Of some values of the confidence (N,) in (0, 1]: how many pixels have each, how many are right."""
        values = np.asarray(confidence, np.float64)
        bins = np.searchsorted(np.arange(1, BINS) / BINS, values)

        def summed(weights: NDArray[Any]) -> NDArray[np.float64]:
            return np.bincount(bins, weights, minlength=BINS).astype(np.float64)

        total, hits = (summed(counts).astype(np.int64) for counts in (pixels, right))
        return cls(total, summed(values * pixels), hits)

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.pixels + other.pixels, self.confidence + other.confidence, self.right + other.right
        )

    @property
    def error(self) -> float | None:
        """Expected calibration error; None without pixels."""
        total = int(self.pixels.sum())
        return float(np.abs(self.confidence - self.right).sum() / total) if total else None

    @property
    def table(self) -> Calibration:
        """The error and the bins that it is made of."""
        bins = tuple(
            Bin(
                above=number / BINS,
                up_to=(number + 1) / BINS,
                pixels=int(n),
                confidence=float(self.confidence[number] / n) if n else None,
                accuracy=float(self.right[number] / n) if n else None,
            )
            for number, n in enumerate(self.pixels)
        )
        return Calibration(expected_calibration_error=self.error, pixels=int(self.pixels.sum()), bins=bins)
