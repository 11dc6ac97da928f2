"""Slices of a volume across each of its axes, as numbers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.geometry import Region
from wsiseg.planes import Read

SLAB_BYTES = 16 << 20
"""What is read at a time, if a slice is not larger: neighbours of a slice are asked for next."""
KEPT_SLABS = 3
"""Of a layer: one an axis."""


class SliceLayer:
    """Slices of one array on the grid of a mask, whatever its own grid over the same extent is."""

    def __init__(
        self,
        read: Read,
        *,
        shape: Sequence[int],
        grid: Sequence[int],
        dtype: np.dtype[Any],
        channels: int = 1,
        chunk: int = 64,
    ) -> None:
        """`read` gives (C, *region) of an array of `shape` (z, y, x); `grid` is that of the mask."""
        self.dtype = dtype
        self.channels = channels
        self._read = read
        self._shape = tuple(shape)
        self._grid = tuple(grid)
        self._chunk = chunk
        self._nearest = [_nearest(have, want) for have, want in zip(shape, grid, strict=True)]
        self._slab = lru_cache(KEPT_SLABS)(self._read_slab)
        self._lock = threading.Lock()  # not every reader may be used by several threads

    def slice(self, axis: int, index: int, *, channel: int = 0) -> NDArray[Any]:
        """Values of a slice: the two other axes in the order z, y, x. Raises IndexError."""
        if not (0 <= axis < 3 and 0 <= index < self._grid[axis] and 0 <= channel < self.channels):
            raise IndexError(f"there is no slice {index} across axis {axis} of channel {channel}")
        number, inside = divmod(int(self._nearest[axis][index]), self._thickness(axis))
        with self._lock:
            slab = self._slab(axis, number)
        plane = slab[channel].take(inside, axis)
        if self._shape != self._grid:
            plane = plane[np.ix_(*(self._nearest[n] for n in range(3) if n != axis))]
        return np.asarray(plane)

    def encoded(self, axis: int, index: int, *, channel: int = 0) -> bytes:
        """A slice, row by row, least significant byte first."""
        plane = self.slice(axis, index, channel=channel)
        return np.ascontiguousarray(plane, plane.dtype.newbyteorder("<")).tobytes()

    def _thickness(self, axis: int) -> int:
        """Slices that are read at a time: no more than a chunk of them, which is decoded as a whole."""
        across = [n for k, n in enumerate(self._shape) if k != axis]
        each = across[0] * across[1] * self.channels * self.dtype.itemsize
        return min(self._chunk, max(1, SLAB_BYTES // each))

    def _read_slab(self, axis: int, number: int) -> NDArray[Any]:
        thick = self._thickness(axis)
        region: list[slice] = [slice(0, n) for n in self._shape]
        region[axis] = slice(number * thick, min((number + 1) * thick, self._shape[axis]))
        whole: Region = tuple(region)
        return self._read(whole)


def _nearest(have: int, want: int) -> NDArray[np.intp]:
    """Of `have` pixels, the one under the centre of each of `want` over the same extent."""
    return (2 * np.arange(want) + 1) * have // (2 * want)
