"""What is counted of a mask, value by value, in pieces: bincount makes 8 bytes of every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNTED_PX = 1 << 22
"""Pixels that are counted at a time."""
Mask = NDArray[np.uint8]


def _pieces(*arrays: Mask) -> Iterator[tuple[Mask, ...]]:
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, COUNTED_PX):
        yield tuple(values[start : start + COUNTED_PX] for values in flat)


def value_counts(mask: Mask) -> dict[str, int]:
    """How often each value occurs."""
    counts = np.zeros(256, np.int64)
    for (values,) in _pieces(mask):
        counts += np.bincount(values, minlength=256)
    return {str(v): int(counts[v]) for v in np.flatnonzero(counts)}


def confidence_sums(mask: Mask, confidence: Mask) -> dict[str, Any]:
    """By mask value: [pixels that a network decided, the sum of their confidence]."""
    totals = np.zeros((2, 256), np.int64)
    for values, sure in _pieces(mask, confidence):
        totals[0] += np.bincount(values[sure > 0], minlength=256)
        totals[1] += np.bincount(values, sure, minlength=256).astype(np.int64)
    return {str(v): totals[:, v].tolist() for v in np.flatnonzero(totals[0])}
