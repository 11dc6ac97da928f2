"""Tiles of an image and of class indices on one grid, at every power of two.

A tile is TILE pixels a side; its level says how many level-0 pixels one of its pixels covers: 2 ** level.
Tiles start at the corner of level 0 and are whole, also where they stick out of the image, so that a pixel
of every tile lies exactly where the pixels that it stands for lie.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.annotations import Labels
from wsiseg.classes import VOID
from wsiseg.geometry import Region, clip, region_shape
from wsiseg.sources.base import WHITE, Source
from wsiseg.windows import slabs

TILE = 512
APRON = 1
"""Further rows and columns of a tile of indices, right and below: what an outline at its border needs."""
JPEG_QUALITY = 90
Indices = NDArray[np.uint8]


class Layer(Protocol):
    """What tiles are made of."""

    media_type: str

    def tile(self, level: int, row: int, column: int) -> bytes:
        """A tile as a picture file. Raises WsisegError where its pixels cannot be read."""
        ...


def top_level(shape: Sequence[int]) -> int:
    """The level at which an image of `shape` is one tile.

    >>> top_level((512, 513))
    1
    """
    return max(0, math.ceil(math.log2(max(shape) / TILE)))


class IndexLayer:
    """Class indices (or a confidence) of a store as grey PNGs; `outside` is what lies beyond the grid."""

    media_type = "image/png"

    def __init__(self, levels: Sequence[Any] | TruthLevels, *, outside: int = VOID) -> None:
        """`levels` are arrays (y, x) uint8: each has every other pixel of the one before."""
        self._levels = levels
        self._outside = outside

    def read(self, level: int, row: int, column: int) -> Indices:
        """Indices (TILE + APRON, TILE + APRON) of a tile."""
        stored = min(level, len(self._levels) - 1)
        step, array = 2 ** (level - stored), self._levels[stored]
        side = TILE + APRON
        region = tuple(slice(n * TILE * step, (n * TILE + side) * step) for n in (row, column))
        found = clip(region, array.shape)
        out = np.full((side, side), self._outside, np.uint8)
        if 0 not in region_shape(found):
            values = np.asarray(array[found])[::step, ::step]
            out[: values.shape[0], : values.shape[1]] = values
        return out

    def tile(self, level: int, row: int, column: int) -> bytes:
        return _encoded(Image.fromarray(self.read(level, row, column)), "PNG", compress_level=1)


class TruthLevels:
    """Annotations as the levels of a pyramid: fine ones are read when asked for, coarse ones made once."""

    COARSE = 3

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._lock = threading.Lock()
        self._coarse: Indices | None = None

    def __len__(self) -> int:
        return self.COARSE + 1

    def __getitem__(self, level: int) -> TruthLevel:
        return TruthLevel(self, level)

    def shape(self, level: int) -> tuple[int, ...]:
        """Of a level, in its pixels."""
        return tuple(-(-n // 2**level) for n in self._labels.shape)

    def read(self, level: int, region: Region) -> Indices:
        """Class indices of a region of a level: those of every 2 ** level-th pixel."""
        if level == self.COARSE:
            return self._made()[region]
        step = 2**level
        at = clip(tuple(slice(s.start * step, s.stop * step) for s in region), self._labels.shape)
        return self._labels.read(at)[::step, ::step]

    def _made(self) -> Indices:
        with self._lock:
            if self._coarse is None:
                height, width = self._labels.shape
                step = 2**self.COARSE
                coarse = np.empty(self.shape(self.COARSE), np.uint8)
                for part in slabs(height, rows=TILE):
                    rows = self._labels.read((part.rows, slice(0, width)))
                    coarse[part.rows.start // step : -(-part.rows.stop // step)] = rows[::step, ::step]
                self._coarse = coarse
            return self._coarse


@dataclass(frozen=True)
class TruthLevel:
    """One level of annotations, cut like an array."""

    levels: TruthLevels
    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.levels.shape(self.number)

    def __getitem__(self, region: Region) -> Indices:
        return self.levels.read(self.number, region)


class ImageLayer:
    """An image on the grid of a mask as JPEGs, whatever its own pixel size and levels are."""

    media_type = "image/jpeg"

    def __init__(self, source: Source, *, shape: Sequence[int]) -> None:
        """`shape` (y, x) is that of the mask, which covers the same extent."""
        finest = source.levels[0].geometry.shape
        self._levels = [
            (
                tuple(_step(a, b) * n / a for a, b, n in zip(finest, one.geometry.shape, shape, strict=True)),
                one,
            )
            for one in source.levels
        ]
        self._lock = threading.Lock()  # not every reader of slides may be used by several threads

    def read(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """Colours (TILE, TILE, 3) of a tile; white where there is no image."""
        steps, source = self._finest_needed(level)
        box = [
            (n * TILE * 2**level / step, (n + 1) * TILE * 2**level / step)
            for n, step in zip((row, column), steps, strict=True)
        ]
        region = tuple(slice(math.floor(start) - 1, math.ceil(stop) + 1) for start, stop in box)
        if 0 in region_shape(clip(region, source.geometry.shape)):
            return np.full((TILE, TILE, 3), WHITE, np.uint8)
        with self._lock:
            values = source.read(region).values
        picture = np.ascontiguousarray(np.moveaxis(values, 0, -1))
        (top, bottom), (left, right) = (
            (start - part.start, stop - part.start) for (start, stop), part in zip(box, region, strict=True)
        )
        if picture.shape[:2] == (TILE + 2, TILE + 2) and (top, left) == (1.0, 1.0):
            return picture[1:-1, 1:-1]  # pixel by pixel
        finer = bottom - top >= TILE
        image = Image.fromarray(picture).resize(
            (TILE, TILE),
            Image.Resampling.BOX if finer else Image.Resampling.BILINEAR,
            box=(left, top, right, bottom),
        )
        return np.asarray(image)

    def _finest_needed(self, level: int) -> tuple[tuple[float, ...], Source]:
        """The coarsest level that is not coarser than the tile's pixels, or the finest there is."""
        fine = [entry for entry in self._levels if max(entry[0]) <= 2**level * (1 + 1e-3)]
        return max(fine, key=lambda entry: entry[0]) if fine else self._levels[0]

    def tile(self, level: int, row: int, column: int) -> bytes:
        return _encoded(
            Image.fromarray(self.read(level, row, column)), "JPEG", quality=JPEG_QUALITY, subsampling=0
        )


def _step(finest: int, coarse: int) -> float:
    """Pixels of the finest level to one of a coarse level, along an axis of so many pixels each.

    Levels are rounded to whole pixels; a step near a whole number is that number.

    >>> _step(1001, 501), _step(1000, 300)
    (2, 3.3333333333333335)
    """
    whole = round(finest / coarse)
    return whole if coarse in (finest // whole, -(-finest // whole)) else finest / coarse


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
