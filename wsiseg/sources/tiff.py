"""TIFF and OME-TIFF, tiled or not, read tile by tile and never whole."""

from __future__ import annotations

import math
import struct
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr
from tifffile import COMPRESSION, PHOTOMETRIC

from wsiseg.bounded import in_short
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.geometry import Geometry, Region
from wsiseg.sources.base import (
    MOST_LEVELS,
    UINT8,
    WHITE,
    Array,
    Pixels,
    Source,
    check_size,
    everywhere,
    inside_part,
    known_spacing,
    pad_outside,
    tile_by_tile,
    to_rgb_uint8,
)
from wsiseg.sources.jpeg import check_jpeg

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")

# What the decoders raise for damaged tiles: imagecodecs' own errors are RuntimeErrors.
DECODE_ERRORS = (RuntimeError, ValueError, OSError, MemoryError, tifffile.TiffFileError)
# tifffile parses tags when they are asked for, and what it ends in depends on the tag.
DAMAGED = (
    tifffile.TiffFileError, OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    MemoryError, RecursionError, struct.error,
)  # fmt: skip
_UM = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


class TiffFile:
    """Arrays (y, x) or (y, x, C) of a TIFF's largest picture, one a pyramid level, finest first.

    Tiles that the file leaves out hold `absent`. Raises UnreadableSource; SourceError for a stack or
    planes that are not one picture.
    """

    def __init__(self, path: Path, *, absent: int = 0) -> None:
        try:
            file = tifffile.TiffFile(path)
        except DAMAGED as err:
            raise UnreadableSource(f"{path} cannot be opened as a TIFF: {in_short(err)}") from None
        # Closed with this object: sources are values that nobody has to remember to close.
        weakref.finalize(self, file.close)
        self.path = path
        # Labels, macros and previews are series too.
        try:
            all_series = file.series
        except DAMAGED as err:
            raise UnreadableSource(f"{path} cannot be opened as a TIFF: {in_short(err)}") from None
        series = max(all_series, key=lambda s: s.keyframe.imagelength * s.keyframe.imagewidth)
        self.pages = _levels(file, series)
        if len(self.pages) > MOST_LEVELS:
            raise SourceError(f"{path} claims {len(self.pages)} levels; at most {MOST_LEVELS} are read")
        first = self.pages[0]
        if first.axes not in ("YX", "YXS", "SYX"):
            raise SourceError(
                f"{path} has axes {first.axes}; one picture of axes YX, YXS or SYX is supported"
            )
        if len(series.shape) != first.ndim:
            raise SourceError(
                f"{path} is a stack of shape {series.shape} ({series.axes}); one picture is supported: "
                "write its colours as one RGB picture"
            )
        _check_compression(path, first)
        for page in self.pages:
            check_tiles(path, page)
        # tifffile seeks and reads in one file: its decoders may run in threads, its reads may not.
        lock = threading.RLock()
        self.arrays: list[Any] = [level_array(page, lock=lock, absent=absent) for page in self.pages]
        self.shapes = [(int(page.imagelength), int(page.imagewidth)) for page in self.pages]
        self.tiles = [(int(p.chunks[0]), int(p.chunks[1])) for p in self.pages]
        self.spacing = _ome_spacing(file.ome_metadata, self.shapes[0]) or _tag_spacing(first)


def check_tiles(path: Path, page: Any) -> None:
    """Raises SourceError for sizes that no picture has, UnreadableSource where tiles are not listed."""
    shape = (int(page.imagelength), int(page.imagewidth))
    if page.is_tiled:
        tile = (int(page.tilelength), int(page.tilewidth))
    else:
        tile = (min(int(page.rowsperstrip), shape[0]), shape[1])
    check_size(path, shape, tile=tile)
    planes = int(page.samplesperpixel) if page.axes == "SYX" else 1
    needed = planes * math.prod(-(-n // t) for n, t in zip(shape, tile, strict=True))
    if len(page.dataoffsets) != needed:
        raise UnreadableSource(
            f"{path} lists {len(page.dataoffsets)} of the {needed} tiles or strips of its {shape[0]} x "
            f"{shape[1]} pixels; the file is damaged, copy it again"
        )


class Interleaved:
    """Separate planes (C, y, x), read as (y, x, C)."""

    def __init__(self, planes: Any) -> None:
        self._planes = planes
        self.dtype = planes.dtype
        self.ndim = 3
        self.shape = (*planes.shape[1:], planes.shape[0])

    def __getitem__(self, region: Region) -> Array:
        return np.moveaxis(np.asarray(self._planes[(slice(None), *region)]), 0, -1)


def level_array(page: Any, *, lock: threading.RLock, absent: int) -> Any:
    """The page as an array (y, x) or (y, x, C); tiles that the file leaves out hold `absent`."""
    if page.compression == COMPRESSION.JPEG:
        page.decode = _whole_jpegs(page.decode, most=4 * math.prod(page.chunks[:2]) + (1 << 20))
    array = zarr.open(page.aszarr(lock=lock, fillvalue=absent), mode="r")
    return Interleaved(array) if page.axes == "SYX" else array


def _whole_jpegs(decode: Callable[..., Any], *, most: int) -> Callable[..., Any]:
    """A decoder of tiles that raises ValueError where libjpeg fills in grey, or takes memory, and goes on."""

    def checked(data: bytes | None, index: int, /, **options: Any) -> Any:
        if data is not None:
            check_jpeg(bytes(data), most=most)
        return decode(data, index, **options)

    return checked


def _check_compression(path: Path, page: Any) -> None:
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        raise SourceError(
            f"{path} has TIFF compression {int(page.compression)}, which is not supported; convert it, for "
            "example to JPEG or deflate"
        ) from None


def _levels(file: tifffile.TiffFile, series: Any) -> list[Any]:
    """Pages of a picture from fine to coarse: sub-IFDs, or top-level reduced pages."""
    levels = [level.keyframe for level in series.levels]
    if len(levels) > 1:
        return levels
    first = levels[0]
    pages = [first]
    for page in (p.aspage() for p in file.pages):
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


def _ome_spacing(xml: str | None, shape: tuple[int, int]) -> tuple[float, float] | None:
    """Pixel size (µm, y then x) of the picture of `shape` in OME metadata."""
    try:
        elements = [] if xml is None else ElementTree.fromstring(xml).iter()
    except ElementTree.ParseError:
        return None
    size = {"SizeY": str(shape[0]), "SizeX": str(shape[1])}
    found = (e for e in elements if e.tag.endswith("}Pixels") and size.items() <= e.attrib.items())
    pixels = next(found, None)
    if pixels is None:
        return None
    sizes = []
    for axis in "YX":
        try:
            length = float(pixels.get(f"PhysicalSize{axis}", "0"))
        except ValueError:
            return None
        factor = _UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if length <= 0 or factor is None:
            return None
        sizes.append(length * factor)
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
        except DECODE_ERRORS:
            pixels = tile_by_tile(placed, tile=self._tile, channels=3, decode=self._decode_or_none)
        return pad_outside(pixels, placed=placed, region=region)

    def _decode(self, region: Region) -> Array:
        raw = np.asarray(self._file.arrays[self._level][region])
        return np.moveaxis(to_rgb_uint8(raw, name=str(self._file.path)), -1, 0)

    def _decode_or_none(self, region: Region) -> Array | None:
        try:
            return self._decode(region)
        except DECODE_ERRORS:
            return None


def open_tiff(path: Path, *, mpp: float | None) -> TiffSource:
    """Level 0 of a TIFF; `mpp` overrides the file's pixel size.

    Raises UnreadableSource, MissingSpacing, or SourceError for pixels that are not colours of 8 bit.
    """
    file = TiffFile(path, absent=WHITE)
    array, page = file.arrays[0], file.pages[0]
    if array.dtype != np.uint8:
        raise SourceError(
            f"{path} has {array.dtype} pixels; 8 bits a channel are supported: convert the slide"
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    if channels not in (3, 4):
        raise SourceError(f"{path} has {channels} channel{'s' * (channels > 1)}; RGB and RGBA are supported")
    in_jpeg = page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG
    bare = page.compression == COMPRESSION.APERIO_JP2000_YCBC
    if (page.photometric != PHOTOMETRIC.RGB and not in_jpeg) or bare:
        kind, how = (getattr(v, "name", v) for v in (page.photometric, page.compression))
        raise SourceError(
            f"{path} has {kind} pixels with compression {how}; RGB, and YCbCr in JPEG, are supported: "
            "convert it to RGB"
        )
    return TiffSource(file, level=0, l0_spacing=known_spacing(path, mpp, file.spacing))
