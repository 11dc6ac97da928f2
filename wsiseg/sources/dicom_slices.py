"""One slice of a DICOM series: what its headers say, and whether slices make up a volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import SourceError
from wsiseg.sources.native import LPS_TO_RAS, Affine

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


def slices_of(path: Path, header: Any, *, num_frames: int) -> Iterator[Slice]:
    """The slices of a file; raises SourceError for what has no place in space or is no grey image."""
    colour = header.get("PhotometricInterpretation", "MONOCHROME2")
    if int(header.get("SamplesPerPixel", 1)) != 1 or colour != "MONOCHROME2":
        raise SourceError(f"{path} has {colour} pixels; grey images (MONOCHROME2) are supported")
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None and num_frames > 1:
        raise SourceError(
            f"{path} has {num_frames} frames without a place for each; convert it to enhanced DICOM or NIfTI"
        )
    for frame in range(num_frames if per_frame is not None else 1):
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


def check_alike(slices: Sequence[Slice]) -> None:
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


def in_order(path: Path, slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
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


def affine_of(slices: Sequence[Slice]) -> Affine:
    """From voxel (column, row, slice) to RAS mm."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.axes[:3]) * first.spacing[1]
    affine[:3, 1] = np.array(first.axes[3:]) * first.spacing[0]
    affine[:3, 2] = (np.array(last.position) - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine
