"""Every slide format that OpenSlide reads.

OpenSlide takes level-0 (x, y) locations and gives RGBA, where transparent means outside the scanned
area; all of that ends here. After an error its handle refuses everything, also what is intact, so a
failed read is repeated tile by tile on handles of its own and the shared one is replaced.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from wsiseg.errors import UnreadableSource
from wsiseg.geometry import Geometry, Region, region_shape
from wsiseg.sources import slide_tiles
from wsiseg.sources.base import (
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

logger = logging.getLogger(__name__)

DEFAULT_TILE = 256


class SlideFile:
    """One OpenSlide handle, shared by the levels of a slide and replaced after an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._shared = self.open()
        self.tiles: dict[int, Any] = {}
        self.proving = threading.Lock()

    def open(self) -> openslide.OpenSlide:
        """A new handle. Raises UnreadableSource."""
        try:
            return openslide.OpenSlide(str(self.path))
        except openslide.OpenSlideError as err:
            # As for Zeiss CZI in JPEG XR: what OpenSlide reads of a format depends on its version.
            unsupported = "not supported" in str(err)
            hint = f" by OpenSlide {openslide.__library_version__}; convert it to OME-TIFF" * unsupported
            raise UnreadableSource(f"{self.path} cannot be opened as a slide: {err}{hint}") from None

    @property
    def handle(self) -> openslide.OpenSlide:
        return self._shared

    def read(self, *, l0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Array:
        """RGB (y, x, 3) with transparency laid over white. Raises OpenSlideError."""
        handle = self._shared
        try:
            return _read(handle, l0_xy, level, size)
        except openslide.OpenSlideError:
            with self._lock:
                if self._shared is handle:
                    self._shared = self.open()
            # Another thread may have spoilt the handle: once more, alone.
            return self.read_alone(l0_xy=l0_xy, level=level, size=size)

    def read_alone(self, *, l0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Array:
        """As `read`, on a handle that nobody else uses."""
        with self.open() as handle:
            return _read(handle, l0_xy, level, size)


def _read(handle: openslide.OpenSlide, l0_xy: tuple[int, int], level: int, size: tuple[int, int]) -> Array:
    return to_rgb_uint8(np.asarray(handle.read_region(l0_xy, level, size)), name="slide")


class SlideSource:
    """One level of a slide."""

    def __init__(self, file: SlideFile, *, level: int, l0_spacing: tuple[float, float]) -> None:
        handle = file.handle
        width, height = handle.level_dimensions[level]
        l0_width, l0_height = handle.dimensions
        self._file = file
        self._level = level
        self._l0_spacing = l0_spacing
        # Exact ratios per axis; OpenSlide's downsample is their mean.
        self._downsample = (l0_height / height, l0_width / width)
        self._l0_step = float(handle.level_downsamples[level])  # what OpenSlide divides locations by
        spacing = (l0_spacing[0] * self._downsample[0], l0_spacing[1] * self._downsample[1])
        self.geometry = Geometry(axes="yx", shape=(height, width), spacing=spacing, unit="micrometer")
        self.num_channels = 3
        self.dtype, self.outside = UINT8, WHITE
        self._vendor = handle.properties.get("openslide.vendor", "unknown")
        tile = tuple(
            int(handle.properties.get(f"openslide.level[{level}].tile-{side}", DEFAULT_TILE))
            for side in ("height", "width")
        )
        self._tile = tile
        self.block = tuple(t * max(1, round(768 / t)) for t in tile)

    @property
    def format(self) -> str:
        return f"OpenSlide {self._vendor}" + ", tiles by tifffile" * (self._tiles() is not None)

    def _tiles(self) -> Any:
        """The level as tifffile reads it; None where that is not proven to give the same pixels."""
        if self._vendor not in slide_tiles.VENDORS:
            return None
        with self._file.proving:
            if self._level not in self._file.tiles:
                height, width = self.geometry.shape
                self._file.tiles[self._level] = slide_tiles.proven_tiles(
                    self._file.path, (height, width), reference=self._reference
                )
            return self._file.tiles[self._level]

    def _reference(self, region: Region) -> Array:
        height, width = region_shape(region)
        location = self._location(region)
        try:
            return self._file.read_alone(l0_xy=location, level=self._level, size=(width, height))
        except openslide.OpenSlideError as err:
            raise ValueError(str(err)) from None

    def _fast(self, region: Region) -> Array | None:
        """RGB (y, x, 3) by tifffile; None where OpenSlide has to read, also what is damaged."""
        tiles = self._tiles()
        try:
            return None if tiles is None else np.asarray(tiles[region])
        except slide_tiles.FAILURES:
            return None

    @property
    def levels(self) -> Sequence[Source]:
        count = self._file.handle.level_count
        return [
            SlideSource(self._file, level=n, l0_spacing=self._l0_spacing) for n in range(self._level, count)
        ]

    def _location(self, region: Region) -> tuple[int, int]:
        y, x = (round(s.start * self._l0_step) for s in region)
        return x, y

    def read(self, region: Region) -> Pixels:
        placed = inside_part(region, self.geometry)
        height, width = region_shape(placed)
        if height == 0 or width == 0:
            values = np.empty((3, height, width), np.uint8)
            return pad_outside(Pixels(values, everywhere(placed)), placed=placed, region=region)
        if (fast := self._fast(placed)) is not None:
            return pad_outside(
                Pixels(np.moveaxis(fast, -1, 0), everywhere(placed)), placed=placed, region=region
            )
        try:
            rgb = self._file.read(l0_xy=self._location(placed), level=self._level, size=(width, height))
        except openslide.OpenSlideError as err:
            y, x = placed
            logger.warning(
                "%s, level %d, rows %d to %d, columns %d to %d: %s; reading its tiles singly",
                self._file.path.name, self._level, y.start, y.stop, x.start, x.stop, err,
            )  # fmt: skip
            pixels = tile_by_tile(placed, tile=self._tile, channels=3, decode=self._decode_alone)
        else:
            pixels = Pixels(np.moveaxis(rgb, -1, 0), everywhere(placed))
        return pad_outside(pixels, placed=placed, region=region)

    def _decode_alone(self, part: Region) -> Array | None:
        height, width = region_shape(part)
        location = self._location(part)
        try:
            rgb = self._file.read_alone(l0_xy=location, level=self._level, size=(width, height))
        except openslide.OpenSlideError:
            return None
        return np.moveaxis(rgb, -1, 0)


def open_slide(path: Path, *, mpp: float | None) -> SlideSource:
    """Level 0 of a slide; `mpp` (µm per pixel) overrides the file's.

    Raises UnreadableSource if it is broken, MissingSpacing if its pixel size is nowhere stated.
    """
    file = SlideFile(path)
    check_size(path, file.handle.dimensions[::-1])
    return SlideSource(file, level=0, l0_spacing=known_spacing(path, mpp, _stated(file.handle)))


def _stated(handle: openslide.OpenSlide) -> tuple[float, float] | None:
    """Level-0 pixel size (µm, y then x) that the file states, or None."""
    try:
        y = float(handle.properties[openslide.PROPERTY_NAME_MPP_Y])
        x = float(handle.properties[openslide.PROPERTY_NAME_MPP_X])
    except (KeyError, ValueError):
        return None
    return y, x


@dataclass(frozen=True)
class OnGlass:
    """Where the image of a slide lies: the distance of its middle from that of the glass, and its size."""

    middle_nm: tuple[float, float]
    """(y, x), downwards and to the right."""
    spacing_um: tuple[float, float]
    """Of a pixel of level 0, as the file states it."""
    shape: tuple[int, int]

    def to_nm(self, px: NDArray[Any]) -> NDArray[np.int64]:
        """Level-0 pixels (n, 2) as x, y as whole nanometres from the middle of the glass."""
        middle = np.array(self.shape[::-1]) / 2
        nm = (px - middle) * (1000 * np.array(self.spacing_um[::-1])) + np.array(self.middle_nm[::-1])
        return np.asarray(np.rint(nm), np.int64)

    def to_px(self, nm: NDArray[Any]) -> NDArray[np.float64]:
        """The reverse of `to_nm`, without rounding."""
        away = (nm - np.array(self.middle_nm[::-1])) / (1000 * np.array(self.spacing_um[::-1]))
        return np.asarray(away + np.array(self.shape[::-1]) / 2)


def on_glass(path: Path) -> OnGlass | None:
    """Where a Hamamatsu slide says that its image lies; None where it does not. Raises UnreadableSource."""
    if openslide.OpenSlide.detect_format(str(path)) is None:
        return None
    with SlideFile(path).handle as handle:
        stated = _stated(handle)
        try:
            y, x = (float(handle.properties[f"hamamatsu.{axis}OffsetFromSlideCentre"]) for axis in "YX")
        except (KeyError, ValueError):
            return None
        width, height = handle.dimensions
    return None if stated is None else OnGlass((y, x), stated, (height, width))


def bounds_corner(path: Path) -> tuple[int, int]:
    """Level-0 pixel (y, x) at which the bounds of a slide begin; (0, 0) where it states none.

    Raises UnreadableSource.
    """
    if openslide.OpenSlide.detect_format(str(path)) is None:
        return 0, 0
    with SlideFile(path).handle as handle:
        names = (openslide.PROPERTY_NAME_BOUNDS_Y, openslide.PROPERTY_NAME_BOUNDS_X)
        try:
            y, x = (int(handle.properties.get(name, 0)) for name in names)
        except ValueError:
            return 0, 0
    return y, x
