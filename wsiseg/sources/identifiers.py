"""What a file says of whom and where it is from, for those who ask for it; nothing else reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import openslide
import pydicom
import tifffile
from pydicom.config import disable_value_validation

from wsiseg.bounded import in_short
from wsiseg.sources.dicom_series import BAD_FILE
from wsiseg.sources.nifti import is_nifti, open_nifti
from wsiseg.sources.tiff import SUFFIXES as TIFF_SUFFIXES
from wsiseg.sources.volumes import is_dicom

MOST_ENTRIES, MOST_LETTERS = 500, 2000
TAGS = (
    "PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "PatientSex", "PatientAge",
    "PatientAddress", "PatientComments", "AccessionNumber", "StudyID", "StudyInstanceUID", "StudyDate",
    "StudyDescription", "SeriesInstanceUID", "SeriesDescription", "InstitutionName", "InstitutionAddress",
    "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "StationName", "DeviceSerialNumber",
    "ContainerIdentifier", "BarcodeValue", "LabelText", "ImageComments", "ProtocolName",
)  # fmt: skip
"""Of DICOM, by which a person, a specimen or a hospital is found again."""


def read_identifiers(path: Path) -> dict[str, str]:
    """Names, numbers and free texts in the metadata of an input, by their names in the file."""
    found: dict[str, str] = {}
    for name, value in _said(path):
        if str(value).strip() and len(found) < MOST_ENTRIES:
            found[in_short(name)] = in_short(value, most=MOST_LETTERS)
    return found


def _said(path: Path) -> Iterator[tuple[str, Any]]:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if is_nifti(file):
            # The modalities of a case may say different things.
            texts = _of_nifti(file)
            yield from ((f"{file.name} {name}" if path.is_dir() else name, value) for name, value in texts)
        elif is_dicom(file):
            yield from _of_dicom(file)
            return
    if path.is_dir():
        return
    if path.suffix.lower() in TIFF_SUFFIXES:
        yield from _of_tiff(path)
    elif openslide.OpenSlide.detect_format(str(path)) is not None:
        with openslide.OpenSlide(str(path)) as handle:
            yield from handle.properties.items()


def _of_dicom(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with disable_value_validation():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
            yield from ((name, header.get(name, "")) for name in TAGS)
    except BAD_FILE:
        return  # what is damaged is said where the image is read


def _of_tiff(path: Path) -> Iterator[tuple[str, Any]]:
    with tifffile.TiffFile(path) as file:
        for number, page in enumerate(file.pages):
            if number >= MOST_ENTRIES:
                return
            tags = [t for t in getattr(page, "tags", ()) if isinstance(t.value, str)]
            yield from ((f"page {number} {tag.name}", tag.value) for tag in tags)


def _of_nifti(path: Path) -> Iterator[tuple[str, Any]]:
    native = open_nifti(path).native
    assert native.header_bytes is not None  # of NIfTI
    header = nib.Nifti1Header
    for name in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
        kind = nib.Nifti2Header if len(native.header_bytes) > header.sizeof_hdr else header
        fields = kind(native.header_bytes, check=False)
        if name in fields:
            yield name, bytes(fields[name].item()).decode("utf-8", "replace")
