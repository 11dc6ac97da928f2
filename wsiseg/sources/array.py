"""An array in memory (or anything that slices like one) as a source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsiseg.geometry import Geometry, Region
from wsiseg.sources.base import (
    UINT8,
    WHITE,
    Array,
    Pixels,
    Source,
    everywhere,
    inside_part,
    pad_outside,
)


class ArraySource:
    """`array` of shape (C, *geometry.shape), uint8, at one resolution.

    Raises ValueError where array and geometry disagree.
    """

    def __init__(
        self, array: Array, geometry: Geometry, *, format: str = "array", valid: Array | None = None
    ) -> None:
        if array.ndim < 1 or tuple(array.shape[1:]) != geometry.shape:
            raise ValueError(
                f"an array of shape {array.shape} does not fit (C, *{geometry.shape}) of the geometry"
            )
        if array.dtype != np.uint8:
            raise ValueError(f"pixels must be uint8, got {array.dtype}")
        self._array = array
        self._valid = valid
        self.geometry = geometry
        self.format = format
        self.num_channels = int(array.shape[0])
        self.dtype, self.outside = UINT8, WHITE
        self.block = tuple(min(512, n) for n in geometry.shape)

    @property
    def levels(self) -> Sequence[Source]:
        return (self,)

    def read(self, region: Region) -> Pixels:
        placed = inside_part(region, self.geometry)
        values = self._array[(slice(None), *placed)]
        valid = everywhere(placed) if self._valid is None else self._valid[placed]
        return pad_outside(Pixels(np.asarray(values), valid), placed=placed, region=region)
