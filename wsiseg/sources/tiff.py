"""TIFF and OME-TIFF, tiled or not, read tile by tile and never whole."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.geometry import Geometry, Region
from wsiseg.sources.base import (
    UINT8,
    WHITE,
    Array,
    Pixels,
    Source,
    everywhere,
    inside_part,
    known_spacing,
    pad_outside,
    tile_by_tile,
    to_rgb_uint8,
)

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")

# What the decoders raise for damaged tiles: imagecodecs' own errors are RuntimeErrors.
_DECODE_ERRORS = (RuntimeError, ValueError, OSError, tifffile.TiffFileError)
_UM = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


class TiffFile:
    """Arrays (y, x) or (y, x, C) of a TIFF's first image, one a pyramid level, finest first.

    Raises UnreadableSource; SourceError for a stack or planes that are not one picture.
    """

    def __init__(self, path: Path) -> None:
        try:
            file = tifffile.TiffFile(path)
        except (tifffile.TiffFileError, OSError, ValueError) as err:
            raise UnreadableSource(f"{path} cannot be opened as a TIFF: {err}") from None
        # Closed with this object: sources are values that nobody has to remember to close.
        weakref.finalize(self, file.close)
        self.path = path
        self.pages = _levels(file)
        first = self.pages[0]
        if first.axes not in ("YX", "YXS"):
            raise SourceError(f"{path} has axes {first.axes}; one picture of axes YX or YXS is supported")
        if len(file.series[0].shape) != first.ndim:
            raise SourceError(
                f"{path} is a stack of shape {file.series[0].shape} ({file.series[0].axes}); "
                "one picture is supported"
            )
        # tifffile seeks and reads in one file: its decoders may run in threads, its reads may not.
        lock = threading.RLock()
        self.arrays: list[Any] = [zarr.open(page.aszarr(lock=lock), mode="r") for page in self.pages]
        self.shapes = [(int(page.imagelength), int(page.imagewidth)) for page in self.pages]
        self.tiles = [(int(p.chunks[0]), int(p.chunks[1])) for p in self.pages]
        self.spacing = _ome_spacing(file.ome_metadata) or _tag_spacing(first)


def _levels(file: tifffile.TiffFile) -> list[Any]:
    """Pages of the first picture from fine to coarse: sub-IFDs, or top-level reduced pages."""
    levels = [level.keyframe for level in file.series[0].levels]
    if len(levels) > 1:
        return levels
    first = levels[0]
    pages = [first]
    for page in (p.aspage() for p in file.pages[1:]):
        smaller = page.is_reduced and page.imagewidth < pages[-1].imagewidth
        # Labels and macros are reduced pages too: a level has the picture's proportions.
        factor = first.imagewidth / page.imagewidth
        if (
            smaller
            and abs(page.imagelength * factor - first.imagelength) <= 2 * factor
            and page.axes == first.axes
        ):
            pages.append(page)
    return pages


def _ome_spacing(xml: str | None) -> tuple[float, float] | None:
    """Pixel size (µm, y then x) in OME metadata."""
    if xml is None:
        return None
    pixels = next((e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None
    sizes = []
    for axis in "YX":
        try:
            size = float(pixels.get(f"PhysicalSize{axis}", "0"))
        except ValueError:
            return None
        factor = _UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if size <= 0 or factor is None:
            return None
        sizes.append(size * factor)
    return sizes[0], sizes[1]


def _tag_spacing(page: Any) -> tuple[float, float] | None:
    """Pixel size (µm, y then x) in the resolution tags."""
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    sizes = []
    for name in ("YResolution", "XResolution"):
        numerator, denominator = page.tags.valueof(name, default=(0, 1))
        if unit is None or numerator <= 0 or denominator <= 0:
            return None
        sizes.append(unit * denominator / numerator)
    # 72 to 600 dots an inch is what picture programs write: a screen's or printer's, not a scanner's.
    return (sizes[0], sizes[1]) if max(sizes) < 40 else None


class TiffSource:
    """One level of a TIFF."""

    def __init__(self, file: TiffFile, *, level: int, l0_spacing: tuple[float, float]) -> None:
        shape, l0_shape = file.shapes[level], file.shapes[0]
        self._file = file
        self._level = level
        self._l0_spacing = l0_spacing
        self._tile = file.tiles[level]
        spacing = tuple(s * (a / b) for s, a, b in zip(l0_spacing, l0_shape, shape, strict=True))
        self.geometry = Geometry(axes="yx", shape=shape, spacing=spacing, unit="micrometer")
        self.num_channels = 3
        self.dtype, self.outside = UINT8, WHITE
        self.format = "TIFF"
        self.block = tuple(min(n, t * max(1, round(768 / t))) for t, n in zip(self._tile, shape, strict=True))

    @property
    def levels(self) -> Sequence[Source]:
        numbers = range(self._level, len(self._file.arrays))
        return [TiffSource(self._file, level=n, l0_spacing=self._l0_spacing) for n in numbers]

    def read(self, region: Region) -> Pixels:
        placed = inside_part(region, self.geometry)
        try:
            pixels = Pixels(self._decode(placed), everywhere(placed))
        except _DECODE_ERRORS:
            pixels = tile_by_tile(placed, tile=self._tile, channels=3, decode=self._decode_or_none)
        return pad_outside(pixels, placed=placed, region=region)

    def _decode(self, region: Region) -> Array:
        raw = np.asarray(self._file.arrays[self._level][region])
        return np.moveaxis(to_rgb_uint8(raw, name=str(self._file.path)), -1, 0)

    def _decode_or_none(self, region: Region) -> Array | None:
        try:
            return self._decode(region)
        except _DECODE_ERRORS:
            return None


def open_tiff(path: Path, *, mpp: float | None) -> TiffSource:
    """Level 0 of a TIFF; `mpp` overrides the file's pixel size.

    Raises UnreadableSource, MissingSpacing, or SourceError for pixels that are not 8 bit.
    """
    file = TiffFile(path)
    array = file.arrays[0]
    if array.dtype != np.uint8:
        raise SourceError(f"{path} has {array.dtype} pixels; 8 bits a channel are supported")
    if array.ndim == 3 and array.shape[2] > 4:
        raise SourceError(f"{path} has {array.shape[2]} channels; grey, RGB and RGBA are supported")
    return TiffSource(file, level=0, l0_spacing=known_spacing(path, mpp, file.spacing))
