"""A DICOM series as a volume: one image a slice, or all slices as frames of one file."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info

from wsiseg.bounded import in_short
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.base import Array
from wsiseg.sources.dicom_slices import Slice, affine_of, check_alike, in_order, slices_of
from wsiseg.sources.native import native_grid
from wsiseg.sources.volume import Channel, VolumeSource, allocate

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""
_NO_IMAGES = {SLIDE_CLASS, "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
"""Slides, and segmentations: what somebody made of an image that may lie beside it."""

_MAGIC_AT = 128
BAD_FILE = (
    AttributeError,
    BytesLengthException,
    EOFError,
    IndexError,
    InvalidDicomError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise for damaged files: it parses values when they are asked for."""


@dataclass(frozen=True)
class ImageFile:
    """A file with one image or several frames."""

    path: Path
    header: Any
    uid: str
    number: int
    modality: str
    num_frames: int


@dataclass(frozen=True)
class Series:
    """The files of one SeriesInstanceUID."""

    files: tuple[ImageFile, ...]

    @property
    def uid(self) -> str:
        """The SeriesInstanceUID."""
        return self.files[0].uid

    @property
    def modality(self) -> str:
        """Such as MR. What the scanner or a person calls a series may name the patient, and is not read."""
        return self.files[0].modality

    @property
    def num_slices(self) -> int:
        """Images, counting frames."""
        return sum(file.num_frames for file in self.files)


def is_dicom(path: Path) -> bool:
    """True for a file that begins like DICOM."""
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM"


def class_of(path: Path) -> str:
    """The SOP class that the file meta information names; may be empty. Raises what BAD_FILE lists."""
    return str(read_file_meta_info(path).get("MediaStorageSOPClassUID", ""))


def holds_series(path: Path) -> bool:
    """True for a file, or a folder with a file, that is a DICOM image other than a slide."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return any(_image_file(file) is not None for file in files if file.is_file())


def open_series(path: str | Path, *, series: str | int | None = None) -> VolumeSource:
    """The volume of a folder's DICOM series, or of one file with many frames.

    `series` is the SeriesInstanceUID, or the number in the list that is shown where there are several.
    Raises UnreadableSource for what is no DICOM or cannot be decoded, SourceError for lone images,
    missing, repeated and unlike slices, and for several series.
    """
    path = Path(path)
    slices, problems = ordered_slices(path, series=series)
    source = VolumeSource(
        [_channel(path, slices, name=path.stem)],
        format="DICOM series",
        problems=problems,
    )
    source.check()
    return source


def ordered_slices(path: Path, *, series: str | int | None = None) -> tuple[list[Slice], list[str]]:
    """The slices of a series in the order of their place, and what to tell about them. As `open_series`."""
    chosen = _choose(path, find_series(path), series)
    try:
        slices = [
            s for file in chosen.files for s in slices_of(file.path, file.header, num_frames=file.num_frames)
        ]
    except BAD_FILE as err:
        reason = " ".join(str(err).split())
        raise UnreadableSource(f"{path}: the DICOM header of an image makes no sense: {reason}") from None
    if len(slices) == 1:
        raise SourceError(
            f"{slices[0].path} is a lone 2-D image; give the folder with all slices of its series"
        )
    check_alike(slices)
    return in_order(path, slices)


def _channel(path: Path, slices: Sequence[Slice], *, name: str) -> Channel:
    rows, columns = slices[0].shape
    stored = _decode(path, slices)
    slope, intercept = slices[0].slope, slices[0].intercept
    if len({(s.slope, s.intercept) for s in slices}) > 1:  # as in PET: no one factor serves all slices
        values = allocate(path, stored.shape, np.float32)
        for k, s in enumerate(slices):
            values[k] = stored[k] * s.slope + s.intercept
        stored, slope, intercept = values, 1.0, 0.0
    return Channel(
        name=name,
        path=path,
        native=native_grid(path, affine_of(slices), (columns, rows, len(slices))),
        stored=stored.transpose(2, 1, 0).__getitem__,
        stored_dtype=stored.dtype,
        slope=slope,
        intercept=intercept,
    )


def find_series(path: Path) -> list[Series]:
    """The series of images in a folder (not in folders inside it), by number and UID.

    Raises UnreadableSource where there is none.
    """
    if not path.exists():
        raise UnreadableSource(f"no such file: {path}")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found: dict[str, list[ImageFile]] = {}
    for file in files:
        image = _image_file(file) if file.is_file() else None
        if image is not None:
            found.setdefault(image.uid, []).append(image)
    if not found:
        raise UnreadableSource(f"{path} holds no DICOM image; give the folder with the files of one series")
    return sorted((Series(tuple(members)) for members in found.values()), key=_series_order)


def _series_order(series: Series) -> tuple[int, str]:
    return series.files[0].number, series.uid


def _image_file(path: Path) -> ImageFile | None:
    """The header of a DICOM image, None for a slide, a DICOM object without pixels and other files."""
    try:
        if not is_dicom(path):
            return None
        # The rest of a slide's header may hold an item for each of a million tiles.
        if class_of(path) in _NO_IMAGES:
            return None
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "Rows" not in header or header.get("SOPClassUID") in _NO_IMAGES:
            return None
        return ImageFile(
            path=path,
            header=header,
            uid=str(header.get("SeriesInstanceUID", "")),
            number=int(header.get("SeriesNumber") or 0),
            modality=in_short(header.get("Modality") or "", most=16),
            num_frames=int(header.get("NumberOfFrames") or 1),
        )
    except BAD_FILE as err:
        reason = " ".join(str(err).split())
        raise UnreadableSource(f"{path} has a damaged DICOM header: {reason}; copy the file again") from None


def _choose(path: Path, found: Sequence[Series], series: str | int | None) -> Series:
    listed = "; ".join(
        f"{n}: {s.uid} ({s.modality or 'no modality'}, {s.num_slices} slices)" for n, s in enumerate(found, 1)
    )
    if series is None:
        if len(found) > 1:
            raise SourceError(f"{path} holds {len(found)} series; choose one by UID or number: {listed}")
        return found[0]
    for number, one in enumerate(found, 1):
        if str(series) in (one.uid, str(number)):
            return one
    raise SourceError(f"{path} holds no series {series}; choose one by UID or number: {listed}")


def _decode(path: Path, slices: Sequence[Slice]) -> Array:
    """Stored values (slice, row, column); raises UnreadableSource naming what cannot be decoded."""
    order = sorted(range(len(slices)), key=lambda k: slices[k].path)
    voxels: Array | None = None
    for file, places in itertools.groupby(order, key=lambda k: slices[k].path):
        try:
            header = pydicom.dcmread(file)
            frames = header.pixel_array
        except BAD_FILE as err:
            reason = " ".join(str(err).split())
            raise UnreadableSource(
                f"{file} cannot be decoded: {reason}; copy it again or decompress the series"
            ) from None
        if voxels is None:
            voxels = allocate(path, (len(slices), *slices[0].shape), frames.dtype)
        for k in places:
            voxels[k] = frames if frames.ndim == 2 else frames[slices[k].frame]
    assert voxels is not None  # two slices at least
    return voxels
