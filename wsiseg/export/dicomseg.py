"""A mask as a DICOM segmentation (label map) that refers to the slide or series it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.bounded import in_short
from wsiseg.classes import VOID, MaskClass
from wsiseg.errors import StoreError, UsageError
from wsiseg.export.streams import check_name, written
from wsiseg.models.card import RESEARCH_USE

MOST_PIXELS = 1 << 30
"""highdicom takes the whole mask at a time, and keeps what it makes of it: 1 GB and more."""
TILE_PX = 512
TECHNICAL = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "Modality", "ImageType", "PositionReferenceIndicator", "Rows", "Columns", "NumberOfFrames",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixColumns", "TotalPixelMatrixFocalPlanes", "TotalPixelMatrixOriginSequence",
    "NumberOfOpticalPaths", "OpticalPathSequence", "ImageOrientationSlide", "ImagedVolumeWidth",
    "ImagedVolumeHeight", "ImagedVolumeDepth", "ImageOrientationPatient", "ImagePositionPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence", "DimensionOrganizationType",
    "DimensionIndexSequence", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
)  # fmt: skip
"""What is taken of a header: highdicom repeats all that it finds of patient and study."""
EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""What it must find, empty."""


def write_dicom_seg(
    path: Path,
    mask: NDArray[np.uint8],
    headers: Sequence[Any],
    *,
    classes: Sequence[MaskClass],
    identity: str,
) -> None:
    """Write a mask (frames, rows, columns) uint8, void and its classes by index.

    `headers` are the DICOM data sets that it was made from, without pixels: that of a slide's finest level,
    or those of the slices in the order of the frames. Segment n is class n - 1. What says whose image
    it is stays out; UIDs of study, frame of reference and images stay in: by them viewers find what belongs
    together. Raises UsageError, StoreError.
    """
    if find_spec("highdicom") is None:
        raise UsageError("--to dicom-seg needs the package highdicom: pip install 'wsiseg[dicom-seg]'")
    check_name(path, (".dcm",), what="a DICOM file")
    segments = np.zeros(256, np.uint8)
    segments[:VOID] = np.arange(1, VOID + 1)
    named = [_unidentified(header) for header in headers]
    try:
        made = _segmentation(segments[mask], named, classes=classes, identity=identity)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        # What highdicom ends in where a header lacks what DICOM asks for.
        raise StoreError(
            f"cannot write {path}: the header of the image does not say what a segmentation needs: "
            f"{in_short(err)}"
        ) from None
    with written(path) as stream:
        made.save_as(stream, enforce_file_format=True)


def _unidentified(header: Any) -> Any:
    """A copy without anything that says whose image it is, and with what highdicom wants to find."""
    from pydicom import Dataset

    found = Dataset()
    found.file_meta = header.file_meta
    for name in TECHNICAL:
        if name in header:
            found[name] = header[name]
    for name in EMPTY:
        setattr(found, name, "")
    if "TotalPixelMatrixRows" in found:
        found.ContainerIdentifier = "not stated"
    return found


def _segmentation(pixels: Any, headers: Sequence[Any], *, classes: Sequence[MaskClass], identity: str) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    algorithm = AlgorithmIdentificationSequence(
        name="wsiseg", family=codes.DCM.ArtificialIntelligence, version=version("wsiseg")
    )
    described = [
        SegmentDescription(
            segment_number=c.index + 1,
            segment_label=c.name[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            display_color=CIELabColor.from_rgb(*c.color),
        )
        for c in classes
    ]
    slide = "TotalPixelMatrixRows" in headers[0]
    return Segmentation(
        source_images=list(headers),
        pixel_array=pixels,
        segmentation_type="LABELMAP",
        segment_descriptions=described,
        series_instance_uid=_uid(identity, "series"),
        series_number=1,
        sop_instance_uid=_uid(identity, "instance"),
        instance_number=1,
        manufacturer="wsiseg",
        manufacturer_model_name="wsiseg",
        software_versions=version("wsiseg"),
        device_serial_number="none",
        content_description=RESEARCH_USE[:64],
        transfer_syntax_uid=RLELossless if slide else ExplicitVRLittleEndian,
        omit_empty_frames=False,
        tile_pixel_array=slide,
        tile_size=(TILE_PX, TILE_PX) if slide else None,
    )


def _uid(identity: str, what: str) -> str:
    """The same for the same mask: written twice it is one object."""
    number = int(hashlib.sha256(f"{identity} {what}".encode()).hexdigest()[:30], 16)
    return f"2.25.{number}"
