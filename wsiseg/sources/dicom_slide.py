"""DICOM whole-slide images: the pyramid of one series of files, read frame by frame.

wsidicom finds the frames (concatenated, sparse or full, by any kind of offset table); what their colours
are is decided in `dicom_frames`.
"""

from __future__ import annotations

import logging
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wsidicom.errors as wsidicom_errors
from pydicom.config import disable_value_validation
from wsidicom.config import Settings, use_settings
from wsidicom.file import WsiDicomFileSource
from wsidicom.geometry import Point

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.geometry import Geometry, Region, is_empty, relative_to
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
)
from wsiseg.sources.dicom_frames import SYNTAXES, Decode, frame_decoder
from wsiseg.sources.dicom_images import SlideImage, slide_images

logger = logging.getLogger(__name__)
# It logs the traceback of each file that it leaves out; here that is one sentence.
logging.getLogger("wsidicom").setLevel(logging.CRITICAL)

# Frames are cached above, and levels of any size and factor are welcome.
_SETTINGS = Settings(strict_tile_size_check=False, decoded_frame_cache_size=0, encoded_frame_cache_size=0)
_SAME_PLACE_MM = 0.02  # origins of levels are rounded, and some count pixel centres
_ERRORS = (
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    wsidicom_errors.WsiDicomError,
    wsidicom_errors.WsiDicomFileError,
    wsidicom_errors.WsiDicomMatchError,
    wsidicom_errors.WsiDicomNotFoundError,
    wsidicom_errors.WsiDicomNotSupportedError,
    wsidicom_errors.WsiDicomOutOfBoundsError,
    wsidicom_errors.WsiDicomUidDuplicateError,
)


@dataclass(frozen=True)
class Level:
    """The frames of one image on one focal plane."""

    frames: Any  # wsidicom's image data
    shape: tuple[int, int]
    tile: tuple[int, int]
    plane: tuple[float, str]  # height in µm, optical path
    decode: Decode

    def read_tile(self, row: int, column: int) -> Array | None:
        """RGB (*tile, 3), None for a tile that was not scanned."""
        place = Point(column, row)
        if self.frames.is_sparse(place, *self.plane):
            return None
        return self.decode(self.frames.get_encoded_tile(place, *self.plane))


class DicomSlideFile:
    """The levels of a slide, finest first, and the files that hold them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._images = slide_images(path)
        for image in self._images:
            if image.syntax not in SYNTAXES:
                raise SourceError(
                    f"{image.path} is compressed as {image.syntax.name}, which is not supported; convert it "
                    "to JPEG, JPEG 2000 or uncompressed frames"
                )
            _check_same_area(path, self._images[0], image)
        try:
            self._open()
        except _ERRORS as err:
            reason = " ".join(str(err).split())
            raise UnreadableSource(f"{path} cannot be opened as a DICOM slide: {reason}") from None

    def _open(self) -> None:
        with use_settings(_SETTINGS), disable_value_validation():
            source = WsiDicomFileSource.open([image.path for image in self._images])
            # Closed with this object: sources are values that nobody has to remember to close.
            weakref.finalize(self, source.close)
            instances = list(source.level_instances)
        opened = {Path(str(file)) for file in source.files}
        for image in self._images:
            if image.path.resolve() not in opened:
                raise ValueError(f"{image.path.name} ({image.photometric}) is none that can be read")
        shapes = list(dict.fromkeys(image.shape for image in self._images))
        self.levels: list[Level] = []
        for shape in shapes:
            same = [i for i in instances if (i.size.height, i.size.width) == shape]
            level = self._level(same, shape)
            _check_index(level)
            self.levels.append(level)
        spacing = next(i.pixel_spacing for i in instances if (i.size.height, i.size.width) == shapes[0])
        self.spacing = None if spacing is None else (1000.0 * spacing.height, 1000.0 * spacing.width)

    def _level(self, instances: Sequence[Any], shape: tuple[int, int]) -> Level:
        planes = {(z, p): i.image_data for i in instances for p in i.optical_paths for z in i.focal_planes}
        heights = sorted(planes)
        if self.levels:
            chosen = min(heights, key=lambda plane: abs(plane[0] - self.levels[0].plane[0]))
        else:
            chosen = heights[(len(heights) - 1) // 2]
            if len(heights) > 1:
                logger.warning(
                    "%s has %d focal planes; the middle one, at %g µm, is read",
                    self.path.name, len(heights), chosen[0],
                )  # fmt: skip
        frames = planes[chosen]
        tile = (int(frames.tile_size.height), int(frames.tile_size.width))
        decode = frame_decoder(frames.transfer_syntax, frames.photometric_interpretation, tile=tile)
        return Level(frames=frames, shape=shape, tile=tile, plane=chosen, decode=decode)


def _check_same_area(path: Path, finest: SlideImage, image: SlideImage) -> None:
    """Raises SourceError where two images show different parts of the glass."""
    factors = [n / m for n, m in zip(finest.shape, image.shape, strict=True)]
    # Sizes are rounded to whole pixels of the coarser image.
    unlike = abs(image.shape[0] * factors[1] - finest.shape[0]) > 2 * factors[1]
    apart = max(abs(a - b) for a, b in zip(finest.origin_mm, image.origin_mm, strict=True))
    if unlike or apart > _SAME_PLACE_MM * max(1.0, *factors):
        small, large = (f"{i.path.name} ({i.shape[0]} x {i.shape[1]})" for i in (image, finest))
        raise SourceError(
            f"{path} holds several scanned areas: {small} is no level of {large}; put each into a folder"
        )


def _check_index(level: Level) -> None:
    """Finds the first frame, so that a file without a usable offset table is refused, not all void."""
    rows, columns = (-(-n // t) for n, t in zip(level.shape, level.tile, strict=True))
    for index in range(rows * columns):
        place = Point(index % columns, index // columns)
        if not level.frames.is_sparse(place, *level.plane):
            level.frames.get_encoded_tile(place, *level.plane)
            return


class DicomSlideSource:
    """One level of a DICOM slide."""

    def __init__(self, file: DicomSlideFile, *, level: int, l0_spacing: tuple[float, float]) -> None:
        self._file = file
        self._number = level
        self._level = file.levels[level]
        self._l0_spacing = l0_spacing
        shape, l0_shape = self._level.shape, file.levels[0].shape
        spacing = tuple(s * (n / m) for s, n, m in zip(l0_spacing, l0_shape, shape, strict=True))
        self.geometry = Geometry(axes="yx", shape=shape, spacing=spacing, unit="micrometer")
        self.num_channels = 3
        self.dtype, self.outside = UINT8, WHITE
        self.format = "DICOM slide"
        self.block = tuple(t * max(1, round(768 / t)) for t in self._level.tile)

    @property
    def levels(self) -> Sequence[Source]:
        numbers = range(self._number, len(self._file.levels))
        return [DicomSlideSource(self._file, level=n, l0_spacing=self._l0_spacing) for n in numbers]

    def read(self, region: Region) -> Pixels:
        placed = inside_part(region, self.geometry)
        if is_empty(placed):
            values = np.empty((3, *(s.stop - s.start for s in placed)), np.uint8)
            return pad_outside(Pixels(values, everywhere(placed)), placed=placed, region=region)
        pixels = tile_by_tile(placed, tile=self._level.tile, channels=3, decode=self._decode)
        if pixels.all_valid:
            pixels = Pixels(pixels.values, everywhere(placed))
        return pad_outside(pixels, placed=placed, region=region)

    def _decode(self, part: Region) -> Array | None:
        """The part of a tile (3, y, x), None where it cannot be decoded."""
        index = [s.start // t for s, t in zip(part, self._level.tile, strict=True)]
        try:
            tile = self._level.read_tile(*index)
        except _ERRORS as err:
            logger.warning(
                "%s, level %d, tile %d, %d cannot be decoded: %s",
                self._file.path.name, self._number, *index, " ".join(str(err).split()),
            )  # fmt: skip
            return None
        if tile is None:
            return np.full((3, 1, 1), WHITE, np.uint8)
        corner = tuple(slice(i * t, (i + 1) * t) for i, t in zip(index, self._level.tile, strict=True))
        return np.moveaxis(tile[relative_to(part, corner)], -1, 0)


def open_dicom_slide(path: Path, *, mpp: float | None) -> DicomSlideSource:
    """Level 0 of the slide in a folder, or of the slide that a file belongs to.

    `mpp` (µm per pixel) overrides the files'. Raises UnreadableSource for what is broken, MissingSpacing,
    and SourceError for several slides or scanned areas, missing files, and pixels that are not 8-bit colours.
    """
    file = DicomSlideFile(path)
    return DicomSlideSource(file, level=0, l0_spacing=known_spacing(path, mpp, file.spacing))
