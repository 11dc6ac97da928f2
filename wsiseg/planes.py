"""The three planes through a volume as radiologists look at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.geometry import Region
from wsiseg.windows import slabs

Read = Callable[[Region], NDArray[Any]]
"""Values of a region (z, y, x)."""


@dataclass(frozen=True)
class View:
    """How a slice across one axis of a volume (z, y, x; right, anterior, superior) is shown."""

    name: str
    axis: int
    left: str
    right: str


READ_SLICES = 64
"""Of a mask at a time: as many as a chunk of a volume has by default, so that each is decoded once."""

# As radiologists look: the patient's right is on the left, the nose up or to the left.
VIEWS = (View("axial", 0, "R", "L"), View("coronal", 1, "R", "L"), View("sagittal", 2, "A", "P"))


def busiest(mask: Read, shape: tuple[int, ...], *, background: int | None) -> tuple[int, ...]:
    """The slice of each axis with most voxels that are not background; the middle where there are none."""
    counts = [np.zeros(n, np.int64) for n in shape]
    for slab in slabs(shape[0], rows=READ_SLICES):
        marked = mask((slab.rows, slice(0, shape[1]), slice(0, shape[2]))) != (background or 0)
        across = marked.sum(axis=0, dtype=np.int64)  # (y, x)
        counts[0][slab.rows] = marked.sum(axis=(1, 2))
        counts[1] += across.sum(axis=1)
        counts[2] += across.sum(axis=0)
    return tuple(int(c.argmax()) if c.any() else len(c) // 2 for c in counts)


def slice_at(read: Read, shape: tuple[int, ...], view: View, place: int) -> NDArray[Any]:
    """A slice as it is shown: superior or anterior up, the patient's right or the nose left."""
    region = [slice(0, n) for n in shape]
    region[view.axis] = slice(place, place + 1)
    return np.squeeze(read(tuple(region)), axis=view.axis)[::-1, ::-1]


def usual_window(slices: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """The intensities that are shown black and white: 1st and 99.5th percentile of what is not 0."""
    values = np.concatenate([s[s != 0].ravel() for s in slices]).astype(np.float32)
    low, high = np.percentile(values, (1, 99.5)) if values.size else (0.0, 1.0)
    return float(low), float(high)
