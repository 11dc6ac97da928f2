"""DICOM slides that the tests make: tiles of an image, in one file or several."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

from tests.images import Rgb, rgb_last

Encode = Callable[[Rgb], bytes]
TILE = (32, 48)
MPP = (0.4, 0.25)


def item(**attributes: Any) -> Dataset:
    ds = Dataset()
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


@dataclass(frozen=True)
class Stored:
    """How the frames of a DICOM slide are stored."""

    syntax: UID
    photometric: str
    encode: Encode


def _jpeg(tile: Rgb) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=95, subsampling="422"))


def _lossless(tile: Rgb) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k"))


RAW = Stored(ExplicitVRLittleEndian, "RGB", lambda tile: tile.tobytes())
JPEG = Stored(JPEGBaseline8Bit, "YBR_FULL_422", _jpeg)
LOSSLESS = Stored(JPEG2000Lossless, "YBR_RCT", _lossless)


def tiles_of(image: Rgb, tile: tuple[int, int] = TILE) -> dict[tuple[int, int], Rgb]:
    """Tiles (y, x, 3) of an image (3, y, x) by row and column; black beyond the image."""
    (height, width), (rows, columns) = image.shape[1:], tile
    grid = -(-height // rows), -(-width // columns)
    padded = np.zeros((grid[0] * rows, grid[1] * columns, 3), np.uint8)
    padded[:height, :width] = rgb_last(image)
    return {
        (r, c): np.ascontiguousarray(padded[r * rows : (r + 1) * rows, c * columns : (c + 1) * columns])
        for r, c in itertools.product(range(grid[0]), range(grid[1]))
    }


def write_dicom_slide(
    path: Path,
    image: Rgb,
    *,
    stored: Stored = LOSSLESS,
    downsample: float = 1.0,
    series: str = "1.2.7",
    tile: tuple[int, int] = TILE,
    kind: str = "VOLUME",
    frames: Sequence[bytes] | None = None,
    only: Sequence[tuple[int, int]] | None = None,
    part: tuple[int, int] | None = None,
    **attributes: Any,
) -> Path:
    """An image (3, y, x) of 0.4 µm by 0.25 µm times `downsample` as one DICOM instance.

    `only` names the tiles (row, column) of a sparse image; `part` (number from 1, count) makes it a part of
    a concatenation; `frames` are stored instead of the image's tiles.
    """
    tiles = tiles_of(image, tile)
    places = list(tiles) if only is None else list(only)
    encoded = list(frames) if frames is not None else [stored.encode(tiles[p]) for p in places]
    ds = _header(image, stored, tile, series=series, kind=kind, downsample=downsample)
    if part is not None:
        number, count = part
        size = -(-len(places) // count)
        first = (number - 1) * size
        places, encoded = places[first : first + size], encoded[first : first + size]
        ds.ConcatenationUID, ds.ConcatenationFrameOffsetNumber = f"{series}.9", first
        ds.InConcatenationNumber, ds.InConcatenationTotalNumber = number, count
        ds.SOPInstanceUIDOfConcatenationSource = f"{series}.8"
    ds.NumberOfFrames = len(encoded)
    if only is not None:
        ds.DimensionOrganizationType = "TILED_SPARSE"
        ds.PerFrameFunctionalGroupsSequence = [_frame_place(p, tile) for p in places]
    if stored.syntax.is_encapsulated:
        ds.PixelData = encapsulate(encoded)
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    else:
        ds.PixelData = b"".join(encoded)
    for name, value in attributes.items():
        setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def _header(
    image: Rgb, stored: Stored, tile: tuple[int, int], *, series: str, kind: str, downsample: float
) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = stored.syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.ImageType = ["DERIVED" if downsample > 1 else "ORIGINAL", "PRIMARY", kind, "NONE"]
    ds.Modality = "SM"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.6", series, "1.2.5"
    ds.Rows, ds.Columns = tile
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = image.shape[1:]
    ds.ImagedVolumeHeight = image.shape[1] * MPP[0] * downsample / 1000
    ds.ImagedVolumeWidth = image.shape[2] * MPP[1] * downsample / 1000
    ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, 0, stored.photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.DimensionOrganizationType = "TILED_FULL"
    ds.TotalPixelMatrixOriginSequence = [
        item(XOffsetInSlideCoordinateSystem=10, YOffsetInSlideCoordinateSystem=20)
    ]
    ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    ds.OpticalPathSequence = [item(OpticalPathIdentifier="1")]
    spacing = [f"{s * downsample / 1000:.10g}" for s in MPP]
    ds.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[item(PixelSpacing=spacing)])]
    return ds


def _frame_place(place: tuple[int, int], tile: tuple[int, int]) -> Dataset:
    row, column = place
    return item(
        PlanePositionSlideSequence=[
            item(
                RowPositionInTotalImagePixelMatrix=row * tile[0] + 1,
                ColumnPositionInTotalImagePixelMatrix=column * tile[1] + 1,
                XOffsetInSlideCoordinateSystem=10,
                YOffsetInSlideCoordinateSystem=20,
                ZOffsetInSlideCoordinateSystem=0,
            )
        ]
    )


def spoil_frame(path: Path, number: int) -> None:
    """Overwrite one encapsulated frame with zeros, all but its length."""
    ds = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=ds.NumberOfFrames))
    content = bytearray(path.read_bytes())
    where = content.index(frames[number])
    content[where : where + len(frames[number])] = bytes(len(frames[number]))
    path.write_bytes(bytes(content))
