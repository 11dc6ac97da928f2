"""A DICOM series as a volume: one image a slice, or all slices as frames of one file."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.base import Array
from wsiseg.sources.volume import LPS_TO_RAS, Affine, Channel, VolumeSource, allocate, native_grid

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""

_MAGIC_AT = 128
# What pydicom and its decoders raise for damaged files: it parses values when they are asked for.
_BAD_FILE = (
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
_SLACK_MM = 0.02  # positions are often written with two decimals
_SLACK = 0.01  # of a step


@dataclass(frozen=True)
class Slice:
    """One image of a series: where it is (LPS, mm) and how its stored values are meant."""

    path: Path
    frame: int
    position: tuple[float, ...]
    axes: tuple[float, ...]  # unit vectors along a row, then along a column
    spacing: tuple[float, ...]  # between rows, then between columns
    shape: tuple[int, int]  # rows, columns
    pixels: tuple[int, int]  # bits, 1 if signed
    slope: float
    intercept: float

    @property
    def name(self) -> str:
        """The file, and the frame where there are several."""
        return self.path.name if self.frame < 0 else f"{self.path.name} frame {self.frame + 1}"


@dataclass(frozen=True)
class ImageFile:
    """A file with one image or several frames."""

    path: Path
    header: Any
    uid: str
    number: int
    description: str
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
    def description(self) -> str:
        """What the scanner calls it; may be empty."""
        return self.files[0].description

    @property
    def num_slices(self) -> int:
        """Images, counting frames."""
        return sum(file.num_frames for file in self.files)


def is_dicom(path: Path) -> bool:
    """True for a file that begins like DICOM."""
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM"


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
    chosen = _choose(path, find_series(path), series)
    try:
        slices = [s for file in chosen.files for s in _slices(file)]
    except _BAD_FILE as err:
        reason = " ".join(str(err).split())
        raise UnreadableSource(f"{path}: the DICOM header of an image makes no sense: {reason}") from None
    if len(slices) == 1:
        raise SourceError(
            f"{slices[0].path} is a lone 2-D image; give the folder with all slices of its series"
        )
    _check_alike(slices)
    slices, problems = _sorted(path, slices)
    source = VolumeSource(
        [_channel(path, slices, name=chosen.description or path.stem)],
        format="DICOM series",
        problems=problems,
    )
    source.check()
    return source


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
        native=native_grid(path, _affine(slices), (columns, rows, len(slices))),
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
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "Rows" not in header or header.get("SOPClassUID") == SLIDE_CLASS:
            return None
        return ImageFile(
            path=path,
            header=header,
            uid=str(header.get("SeriesInstanceUID", "")),
            number=int(header.get("SeriesNumber") or 0),
            description=str(header.get("SeriesDescription") or ""),
            num_frames=int(header.get("NumberOfFrames") or 1),
        )
    except _BAD_FILE as err:
        reason = " ".join(str(err).split())
        raise UnreadableSource(f"{path} has a damaged DICOM header: {reason}; copy the file again") from None


def _choose(path: Path, found: Sequence[Series], series: str | int | None) -> Series:
    listed = "; ".join(
        f"{n}: {s.uid} ({s.description or 'no description'}, {s.num_slices} slices)"
        for n, s in enumerate(found, 1)
    )
    if series is None:
        if len(found) > 1:
            raise SourceError(f"{path} holds {len(found)} series; choose one by UID or number: {listed}")
        return found[0]
    for number, one in enumerate(found, 1):
        if str(series) in (one.uid, str(number)):
            return one
    raise SourceError(f"{path} holds no series {series}; choose one by UID or number: {listed}")


def _slices(file: ImageFile) -> Iterator[Slice]:
    """The slices of a file; raises SourceError for what has no place in space or is no grey image."""
    path, header, frames = file.path, file.header, file.num_frames
    colour = header.get("PhotometricInterpretation", "MONOCHROME2")
    if int(header.get("SamplesPerPixel", 1)) != 1 or colour != "MONOCHROME2":
        raise SourceError(f"{path} has {colour} pixels; grey images (MONOCHROME2) are supported")
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None and frames > 1:
        raise SourceError(
            f"{path} has {frames} frames without a place for each; convert it to enhanced DICOM or NIfTI"
        )
    for frame in range(frames if per_frame is not None else 1):
        groups = [] if per_frame is None else [per_frame[frame]]
        if "SharedFunctionalGroupsSequence" in header:
            groups.append(header.SharedFunctionalGroupsSequence[0])
        yield _slice(path, header, groups, frame if per_frame is not None else -1)


def _slice(path: Path, header: Any, groups: Sequence[Any], frame: int) -> Slice:
    def said(group: str, name: str, count: int) -> tuple[float, ...]:
        """A value of the frame's own, else of all frames' group, else of the image."""
        owner = next((g[group][0] for g in groups if g.get(group)), header)
        value = owner.get(name)
        if value is None or np.size(value) != count:
            raise SourceError(f"{path} does not state its {name}; it has no place in a volume")
        return tuple(float(v) for v in np.atleast_1d(value))

    rescale = next((g for g in groups if g.get("PixelValueTransformationSequence")), None)
    factors = header if rescale is None else rescale.PixelValueTransformationSequence[0]
    if "ModalityLUTSequence" in header:
        raise SourceError(f"{path} has a table of values (Modality LUT); convert the series to NIfTI")
    slope, intercept = factors.get("RescaleSlope"), factors.get("RescaleIntercept")
    return Slice(
        path=path,
        frame=frame,
        position=said("PlanePositionSequence", "ImagePositionPatient", 3),
        axes=said("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing=said("PixelMeasuresSequence", "PixelSpacing", 2),
        shape=(int(header.Rows), int(header.Columns)),
        pixels=(int(header.BitsAllocated), int(header.get("PixelRepresentation", 0))),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def _check_alike(slices: Sequence[Slice]) -> None:
    """Raises SourceError naming the first slice that is of another size, direction or type."""
    first = slices[0]
    for other in slices[1:]:
        for what, one, two in (
            ("size (rows, columns)", first.shape, other.shape),
            ("orientation", first.axes, other.axes),
            ("pixel spacing", first.spacing, other.spacing),
            ("pixel type (bits, signed)", first.pixels, other.pixels),
        ):
            if not np.allclose(one, two, rtol=1e-4, atol=1e-4):
                raise SourceError(
                    f"{other.path} has another {what} than {first.name}: {two}, not {one}; "
                    "leave the images of one volume in the folder"
                )


def _sorted(path: Path, slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    """Slices in the order of their place along the normal, and what to tell about them.

    Raises SourceError for repeated, missing and shifted slices.
    """
    normal = np.cross(slices[0].axes[:3], slices[0].axes[3:])
    ordered = sorted(slices, key=lambda s: float(np.dot(s.position, normal)))
    positions = np.array([s.position for s in ordered])
    along = positions @ normal
    step = _check_steps(path, ordered, along)
    line = np.linspace(positions[0], positions[-1], len(positions))
    apart = np.linalg.norm(positions - line, axis=1)
    worst = int(apart.argmax())
    if apart[worst] > max(0.1, 0.1 * step):
        raise SourceError(
            f"{path}: {ordered[worst].name} is {apart[worst]:.2f} mm off the line of the other slices; "
            "leave the images of one volume in the folder"
        )
    whole = positions[-1] - positions[0]
    sheared = float(np.linalg.norm(whole)) > 1.0005 * float(along[-1] - along[0])
    return ordered, [f"{path} has slices that are shifted in their plane (a tilted gantry)"] * sheared


def _check_steps(path: Path, slices: Sequence[Slice], along: NDArray[np.float64]) -> float:
    """The distance of slices at places `along` the normal; raises SourceError where it is not the same."""
    steps = np.diff(along)
    step = float(np.median(steps))
    for k, gap in enumerate(steps):
        here = f"at {along[k]:.2f} mm along the slice axis"
        pair = f"{slices[k].name} and {slices[k + 1].name}"
        if gap < 1e-3:
            raise SourceError(
                f"{path} has two slices {here} ({pair}); leave one image of each place in the folder"
            )
        if abs(gap - step) > max(_SLACK_MM, _SLACK * step):
            lost = round(gap / step) - 1
            what = f"lacks {lost} slice{'s' * (lost > 1)}" if lost > 0 else "has unevenly spaced slices"
            raise SourceError(
                f"{path} {what}: after the one {here} the next is {gap:.2f} mm on, elsewhere {step:.2f} mm "
                f"({pair}); bring all slices of the series"
            )
    return step


def _affine(slices: Sequence[Slice]) -> Affine:
    """From voxel (column, row, slice) to RAS mm."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.axes[:3]) * first.spacing[1]
    affine[:3, 1] = np.array(first.axes[3:]) * first.spacing[0]
    affine[:3, 2] = (np.array(last.position) - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _decode(path: Path, slices: Sequence[Slice]) -> Array:
    """Stored values (slice, row, column); raises UnreadableSource naming what cannot be decoded."""
    order = sorted(range(len(slices)), key=lambda k: slices[k].path)
    voxels: Array | None = None
    for file, places in itertools.groupby(order, key=lambda k: slices[k].path):
        try:
            header = pydicom.dcmread(file)
            frames = header.pixel_array
        except _BAD_FILE as err:
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
