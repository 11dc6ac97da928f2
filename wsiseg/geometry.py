"""Pixel grids and regions, for any number of axes; the slowest axis comes first.

Coordinates are pixel corners: pixel i covers [i, i + 1) and its centre is i + 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Region = tuple[slice, ...]
"""One half-open slice per spatial axis, in pixels; it may stick out of the grid."""

Unit = Literal["micrometer", "millimeter"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A pixel grid: `shape` pixels of `spacing` `unit` along `axes`.

    >>> Geometry(axes="yx", shape=(4, 6), spacing=(0.5, 0.25), unit="micrometer").extent
    (2.0, 1.5)
    """

    axes: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: Unit

    def __post_init__(self) -> None:
        if not len(self.axes) == len(self.shape) == len(self.spacing):
            raise ValueError(
                f"axes {self.axes!r}, shape {self.shape} and spacing {self.spacing} "
                "must have one entry per axis"
            )
        if len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes {self.axes!r} name an axis twice")
        if any(n < 1 for n in self.shape):
            raise ValueError(f"shape {self.shape} has an axis without pixels")
        if any(not (math.isfinite(s) and s > 0) for s in self.spacing):
            raise ValueError(f"spacing {self.spacing} must be finite and positive")

    @property
    def extent(self) -> tuple[float, ...]:
        """Physical size per axis, in `unit`."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))

    @property
    def whole(self) -> Region:
        """The region of every pixel."""
        return tuple(slice(0, n) for n in self.shape)

    @property
    def pixel_area(self) -> float:
        """Area (volume) of one pixel, in `unit` to the power of the number of axes."""
        return math.prod(self.spacing)

    def at_spacing(self, spacing: Sequence[float]) -> Geometry:
        """A grid over the same extent (rounded up to whole pixels) with another pixel size."""
        # A part in a million less: 3 pixels of 0.5 must not become 4 by a rounding error.
        shape = tuple(max(1, math.ceil(e / s - 1e-6)) for e, s in zip(self.extent, spacing, strict=True))
        return Geometry(axes=self.axes, shape=shape, spacing=tuple(spacing), unit=self.unit)


def region_shape(region: Region) -> tuple[int, ...]:
    """Number of pixels per axis.

    >>> region_shape((slice(-2, 3), slice(4, 4)))
    (5, 0)
    """
    return tuple(max(0, s.stop - s.start) for s in region)


def clip(region: Region, shape: Sequence[int]) -> Region:
    """The part of the region inside a grid of `shape`, empty (start == stop) where there is none."""
    clipped = []
    for s, n in zip(region, shape, strict=True):
        start = min(max(s.start, 0), n)
        clipped.append(slice(start, max(start, min(s.stop, n))))
    return tuple(clipped)


def shift(region: Region, by: Sequence[int]) -> Region:
    """The region moved by `by` pixels.

    >>> shift((slice(10, 20),), by=(-10,))
    (slice(0, 10, None),)
    """
    return tuple(slice(s.start + n, s.stop + n) for s, n in zip(region, by, strict=True))


def relative_to(region: Region, frame: Region) -> Region:
    """The region in coordinates that start at the corner of `frame`."""
    return shift(region, [-f.start for f in frame])


def is_empty(region: Region) -> bool:
    """True where an axis has no pixels."""
    return any(s.stop <= s.start for s in region)
