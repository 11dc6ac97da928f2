"""Sharded arrays of a store and the coarser levels made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.errors import BaseZarrError

from wsiseg.errors import ObjectStoreError
from wsiseg.files import content_hash
from wsiseg.objects import zarr_place
from wsiseg.windows import slabs

Array = NDArray[Any]
MIN_LEVEL_PX = 512
"""No further level is made once all axes are this small."""
CHUNKS_ACROSS = 4
"""Chunks a shard, across: few files, and little memory while one is put together."""


@dataclass(frozen=True)
class Pyramid:
    """An array (*axes) or (c, *axes) of a store: level 0, written in rows, and the levels made from it."""

    folder: Path
    shape: tuple[int, ...]
    axes: str
    rows: int
    """Of a shard of level 0: what is written in one piece."""
    chunk: int
    shrink: Callable[[Array], Array]
    dtype: str = "uint8"

    def create(self) -> None:
        """Make level 0, empty."""
        create_array(
            self.folder / "0",
            shape=self.shape,
            axes=self.axes,
            rows=self.rows,
            chunk=self.chunk,
            dtype=self.dtype,
        )

    def level(self, number: int = 0) -> zarr.Array[Any]:
        """The array of a level."""
        return zarr.open_array(zarr_place(self.folder / str(number)), mode="r+")

    def _at(self, rows: slice) -> tuple[slice, ...]:
        return (*(slice(None),) * (len(self.shape) - len(self.axes)), rows)

    def write(self, rows: slice, values: Array) -> str:
        """Write rows of level 0; returns their hash. Raises ValueError for values of another shape."""
        lead = len(self.shape) - len(self.axes)
        expected = (*self.shape[:lead], rows.stop - rows.start, *self.shape[lead + 1 :])
        if values.shape != expected:
            raise ValueError(f"rows {rows.start} to {rows.stop} need {expected} pixels, got {values.shape}")
        self.level()[self._at(rows)] = values
        return content_hash(values)

    def holds(self, rows: slice, recorded: str) -> bool:
        """True if rows of level 0 have the hash that `write` gave."""
        return holds(recorded, lambda: content_hash(np.asarray(self.level()[self._at(rows)])))

    def build(self) -> dict[str, str]:
        """Make the coarser levels; their hashes by name."""
        return build_levels(self.folder, axes=self.axes, chunk=self.chunk, shrink=self.shrink)


def holds(recorded: str, compute: Callable[[], str]) -> bool:
    """True if a hash is as recorded; False too where the data cannot even be decoded."""
    try:
        return compute() == recorded
    except ObjectStoreError:  # says nothing of the data
        raise
    except (OSError, ValueError, RuntimeError, BaseZarrError):
        return False


def create_array(
    path: Path, *, shape: tuple[int, ...], axes: str, rows: int, chunk: int, dtype: str = "uint8"
) -> zarr.Array[Any]:
    """An empty array (*axes) or (c, *axes) with shards of `rows` rows (a multiple of `chunk`)."""
    channels = shape[: len(shape) - len(axes)]
    return zarr.create_array(
        zarr_place(path),
        shape=shape,
        chunks=(*channels, *(chunk,) * len(axes)),
        shards=(*channels, rows, *(CHUNKS_ACROSS * chunk,) * (len(axes) - 1)),
        dtype=dtype,
        fill_value=0,
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"),
        dimension_names=("c", *axes) if channels else tuple(axes),
        overwrite=True,
    )


def build_levels(folder: Path, *, axes: str, chunk: int, shrink: Callable[[Array], Array]) -> dict[str, str]:
    """Levels "1", "2", ... beside `folder`/0, each half the one before; their hashes by name."""
    hashes: dict[str, str] = {}
    above = zarr.open_array(zarr_place(folder / "0"), mode="r")
    while max(above.shape[-len(axes) :]) > MIN_LEVEL_PX:
        name = str(len(hashes) + 1)
        lead = above.shape[: above.ndim - len(axes)]
        shape = (*lead, *(-(-n // 2) for n in above.shape[-len(axes) :]))
        array = create_array(
            folder / name, shape=shape, axes=axes, rows=chunk, chunk=chunk, dtype=str(above.dtype)
        )
        everything = (slice(None),) * len(lead)
        for part in slabs(shape[len(lead)], rows=chunk):
            double = slice(2 * part.rows.start, 2 * part.rows.stop)
            array[(*everything, part.rows)] = shrink(np.asarray(above[(*everything, double)]))
        hashes[name] = level_hash(folder / name, axes=axes, chunk=chunk)
        above = array
    return hashes


def level_hash(path: Path, *, axes: str, chunk: int) -> str:
    """SHA-256 of the values of an array, read in rows of chunks."""
    array = zarr.open_array(zarr_place(path), mode="r")
    lead = (slice(None),) * (array.ndim - len(axes))
    digest = hashlib.sha256(repr(array.shape).encode())
    for part in slabs(array.shape[len(lead)], rows=chunk):
        digest.update(np.ascontiguousarray(array[(*lead, part.rows)]).data)
    return digest.hexdigest()


def pick(rows: Array) -> Array:
    """Every other pixel: class indices are never mixed."""
    return rows[(slice(None, None, 2),) * rows.ndim]


def mean(rows: Array) -> Array:
    """Means of 2 pixels on every axis of (C, *axes), the last ones repeated where the size is odd."""
    total = _sums(rows)
    count = 2 ** (rows.ndim - 1)
    if rows.dtype.kind == "f":
        return np.asarray(total / count, rows.dtype)
    return np.asarray((total + count // 2) // count, rows.dtype)


def mean_of_decided(rows: Array) -> Array:
    """The same of a confidence (*axes), over the pixels that are not 0: those say nothing."""
    total, count = _sums(rows[None])[0], _sums((rows > 0)[None].view(np.uint8))[0]
    count = np.maximum(count, 1)
    return np.asarray((total + count // 2) // count, rows.dtype)


def _sums(rows: Array) -> Array:
    """Sums of 2 pixels on every axis of (C, *axes), the last ones repeated where the size is odd."""
    odd = [(0, 0), *((0, n % 2) for n in rows.shape[1:])]
    wide = {"u1": np.uint16, "f4": np.float32}.get(rows.dtype.str[1:], np.int64)
    total = (np.pad(rows, odd, mode="edge") if any(o[1] for o in odd) else rows).astype(wide)
    for axis in range(1, rows.ndim):
        even = (slice(None),) * axis + (slice(0, None, 2),)
        uneven = (slice(None),) * axis + (slice(1, None, 2),)
        total = total[even] + total[uneven]
    return total
