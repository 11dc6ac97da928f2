"""One rule for going between two pixel grids over the same extent: pixel centres.

The centre of pixel i of a grid of n pixels lies at (i + 0.5) / n of the extent. Values are mixed with
a triangle as wide as the coarser of the two pixels (so that shrinking does not alias); class indices
are taken from the pixel in which the centre lies. Every output pixel is computed from its absolute
place, so that a piece equals the same piece of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from wsiseg.geometry import Region


@dataclass(frozen=True)
class Taps:
    """For a stretch of output pixels on one axis: first input pixel (N,) and weights (N, taps)."""

    first: NDArray[np.int64]
    weights: NDArray[np.float32]

    @property
    def support(self) -> slice:
        """Input pixels that are needed; may stick out of the input."""
        return slice(int(self.first.min()), int(self.first.max()) + self.weights.shape[1])


def taps(part: slice, *, size: int, from_size: int) -> Taps:
    """Triangle weights that make output pixels `part` of `size` from an axis of `from_size` pixels."""
    scale = from_size / size
    radius = max(scale, 1.0)
    centre = (np.arange(part.start, part.stop) + 0.5) * scale  # in input pixel corners
    first = np.floor(centre - radius).astype(np.int64)
    count = int(np.ceil(2 * radius)) + 1
    places = first[:, None] + np.arange(count)[None, :] + 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(places - centre[:, None]) / radius)
    inside = (places > 0) & (places < from_size)  # beyond the border, the border's own pixels count
    weights = np.where(inside, weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return Taps(first, weights.astype(np.float32))


def mix(values: NDArray[np.float32], axis_taps: Taps, *, axis: int, start: int) -> NDArray[np.float32]:
    """Weighted sums along `axis` of values whose first entry is input pixel `start`."""
    moved = np.moveaxis(values, axis, 0)
    shape = (-1, *(1,) * (moved.ndim - 1))
    columns = range(axis_taps.weights.shape[1])
    # What lies beyond the border has no weight, so that any value may stand for it.
    places = (np.clip(axis_taps.first + t - start, 0, len(moved) - 1) for t in columns)
    terms = (moved[at] * axis_taps.weights[:, t].reshape(shape) for t, at in enumerate(places))
    return np.moveaxis(reduce(np.add, terms), 0, axis)


def nearest(part: slice, *, size: int, from_size: int) -> NDArray[np.int64]:
    """Input pixel in which the centre of each output pixel of `part` lies.

    Integers throughout, so that no rounding can move a border: (2 i + 1) from_size // (2 size).
    """
    doubled = (2 * np.arange(part.start, part.stop, dtype=np.int64) + 1) * from_size
    return np.asarray(np.minimum(doubled // (2 * size), from_size - 1), np.int64)


def needed_rows(part: slice, *, size: int, from_size: int) -> slice:
    """Input rows that `nearest` takes for a stretch of output rows (at least one)."""
    ends = nearest(slice(part.start, part.start + 1), size=size, from_size=from_size)
    last = nearest(slice(part.stop - 1, part.stop), size=size, from_size=from_size)
    return slice(int(ends[0]), int(last[0]) + 1)


def mixed_rows(part: slice, *, size: int, from_size: int) -> slice:
    """Input rows that `taps` takes for a stretch of output rows, those inside the input."""
    support = taps(part, size=size, from_size=from_size).support
    return slice(max(0, support.start), min(support.stop, from_size))


def sample(
    mask: NDArray[np.uint8],
    region: Region,
    *,
    shape: tuple[int, ...],
    from_shape: tuple[int, ...],
    first_row: int = 0,
) -> NDArray[np.uint8]:
    """Class indices of `region` of a grid of `shape`, from a mask on a grid of `from_shape`.

    `mask` holds the input from row `first_row` on, whole in the other axes.
    """
    out = mask
    for axis, (part, size, from_size) in enumerate(zip(region, shape, from_shape, strict=True)):
        start = first_row if axis == 0 else 0
        if size == from_size:
            out = out[(slice(None),) * axis + (slice(part.start - start, part.stop - start),)]
        else:
            out = out.take(nearest(part, size=size, from_size=from_size) - start, axis=axis)
    return out
