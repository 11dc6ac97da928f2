"""A 3-D medical image as a source, whatever file its voxels are in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.geometry import Region, is_empty, region_shape, relative_to
from wsiseg.sources.base import Array, Pixels, everywhere, inside_part
from wsiseg.sources.native import Native

Stored = Callable[[Region], Array]
"""Voxels of a part of the file's own grid (i, j, k), as stored."""

KEPT_DTYPES = tuple(np.dtype(t) for t in (np.uint8, np.int16, np.uint16))
"""Voxel types that are kept; int8 is read as int16, all others as float32 (exact below 2**24)."""


def allocate(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Memory for voxels, in the order of a C array; raises SourceError where there is not enough."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):
        size = math.prod(shape) * np.dtype(dtype).itemsize / 1e9
        raise SourceError(
            f"{path} needs {size:.1f} GB of memory for its {shape} voxels; "
            "convert it to an uncompressed .nii, which is read piece by piece"
        ) from None


@dataclass(frozen=True)
class OnDisk:
    """Voxels of an uncompressed file in Fortran order; a read takes from the file what it needs.

    Planes are read, not mapped: a mapped file that is cut off meanwhile would end the program, and
    its pages would count as memory.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def __call__(self, part: Region) -> Array:
        out = np.empty(region_shape(part), self.dtype, order="F")
        num_i, num_j = self.shape[0], part[1].stop - part[1].start
        rows = np.empty((num_i, num_j), self.dtype, order="F")
        try:
            with self.path.open("rb", buffering=0) as file:
                for at, k in enumerate(range(part[2].start, part[2].stop)):
                    first = num_i * (part[1].start + self.shape[1] * k)
                    file.seek(self.offset + first * self.dtype.itemsize)
                    if file.readinto(rows.T.view(np.uint8).data) != rows.nbytes:
                        raise OSError("it has become shorter")
                    out[:, :, at] = rows[part[0]]
        except OSError as err:
            raise UnreadableSource(
                f"{self.path} cannot be read any more: {err}; leave the file in place while it is used"
            ) from None
        return out


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One image of a volume: stored voxels on their grid, and value = stored * slope + intercept."""

    name: str
    path: Path
    native: Native
    stored: Stored
    stored_dtype: np.dtype[Any]
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return value_dtype(self.stored_dtype, rescaled=(self.slope, self.intercept) != (1.0, 0.0))

    def _values(self, part: Region) -> Array:
        stored = self.stored(part)
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused
            if (self.slope, self.intercept) != (1.0, 0.0):
                stored = stored.astype(np.float64) * self.slope + self.intercept
            return stored.astype(self.dtype, copy=False)

    def read(self, region: Region) -> Array:
        """Values (z, y, x) of a region inside the image; raises SourceError for NaN and infinity."""
        part = self.native.part(region)
        values = self._values(part)
        count, first = _not_finite(values, part)
        self._refuse(count, first)
        return self.native.from_native(values)

    def check(self) -> None:
        """Read all real numbers; raises SourceError if there are NaN or infinite ones."""
        if self.dtype.kind != "f":
            return
        total, where = 0, None
        for k in range(self.native.shape[2]):
            part = (slice(0, self.native.shape[0]), slice(0, self.native.shape[1]), slice(k, k + 1))
            count, first = _not_finite(self._values(part), part)
            total, where = total + count, where or first
        self._refuse(total, where)

    def _refuse(self, count: int, first: tuple[int, ...] | None) -> None:
        if count:
            raise SourceError(
                f"{self.path} has voxels that are NaN or infinite ({count} of them, the first at (i, j, k) = "
                f"{first}); set them to a number"
            )


def value_dtype(stored: np.dtype[Any], *, rescaled: bool) -> np.dtype[Any]:
    """The type in which voxels of a stored type are read, in this machine's byte order."""
    stored = np.dtype(np.int16) if stored == np.int8 else stored.newbyteorder("=")
    return stored if stored in KEPT_DTYPES and not rescaled else np.dtype(np.float32)


def _not_finite(values: Array, part: Region) -> tuple[int, tuple[int, ...] | None]:
    """How many values are NaN or infinite, and the place of the first on the file's grid."""
    if values.dtype.kind != "f" or (finite := np.isfinite(values)).all():
        return 0, None
    bad = np.argwhere(~finite)
    return len(bad), tuple(int(i) + s.start for i, s in zip(bad[0], part, strict=True))


class VolumeSource:
    """One or several images of one grid, as channels; outside of the grid is 0.

    `native` is the grid of the first channel's file; `problems` are sentences about what the file
    does not say or says twice. Raises ValueError for channels of different grids.
    """

    def __init__(self, channels: Sequence[Channel], *, format: str, problems: Sequence[str] = ()) -> None:
        self.channels = tuple(channels)
        self.native = channels[0].native
        self.geometry = self.native.geometry
        if any(c.native.geometry.shape != self.geometry.shape for c in channels):
            raise ValueError("the channels of a volume must have one grid")
        self.num_channels = len(channels)
        self.channel_names = tuple(c.name for c in channels)
        self.format = format
        self.problems = tuple(problems)
        self.outside = 0
        common = np.result_type(*(c.dtype for c in channels))
        self.dtype: np.dtype[Any] = common if common in KEPT_DTYPES else np.dtype(np.float32)
        # Where z is not the file's slowest axis, few planes of z cost as many reads as many do.
        rows = 16 if self.native.orientation[2][0] == 2 else 64
        self.block = tuple(min(b, n) for b, n in zip((rows, 256, 256), self.geometry.shape, strict=True))

    @property
    def levels(self) -> Sequence[VolumeSource]:
        return (self,)

    def read(self, region: Region) -> Pixels:
        """Values (C, *region) in `dtype`; raises SourceError where voxels are NaN or infinite."""
        placed = inside_part(region, self.geometry)
        values = np.zeros((self.num_channels, *region_shape(region)), self.dtype)
        if not is_empty(placed):
            at = relative_to(placed, region)
            for out, channel in zip(values, self.channels, strict=True):
                out[at] = channel.read(placed)
        return Pixels(values, everywhere(region))

    def check(self) -> None:
        """Raises SourceError for what `read` would refuse, anywhere; reads a volume of real numbers whole."""
        for channel in self.channels:
            channel.check()
