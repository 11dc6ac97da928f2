"""A DICOM slide that cannot be used is refused by a sentence that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000, ExplicitVRBigEndian, ExplicitVRLittleEndian

from tests.conftest import random_image
from tests.slide_files import JPEG, LOSSLESS, RAW, Stored, item, tiles_of, write_dicom_slide
from wsiseg.errors import MissingSpacing, SourceError, UnreadableSource
from wsiseg.sources import open_source

IMAGE = random_image((64, 96), seed=41)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"},
            r"is grey \(MONOCHROME2\); slides of 3 colours \(brightfield\) are supported",
        ),
        ({"BitsStored": 12, "BitsAllocated": 16}, "has 12 bits a colour; 8 are supported: convert the slide"),
        (
            {"stored": Stored(ExplicitVRLittleEndian, "YBR_FULL", lambda t: t.tobytes())},
            "has YBR_FULL pixels, stored as Explicit VR Little Endian, which is not supported; convert it",
        ),
        (
            {"stored": Stored(JPEG2000, "HSV", LOSSLESS.encode)},
            "has HSV pixels, stored as JPEG 2000 Image Compression, which is not supported",
        ),
        (
            {"stored": Stored(pydicom.uid.MPEG2MPML, "RGB", LOSSLESS.encode)},
            "is compressed as MPEG2 Main Profile / Main Level, which is not supported; convert it to JPEG",
        ),
        (
            {"OpticalPathSequence": [item(OpticalPathIdentifier="1"), item(OpticalPathIdentifier="2")]},
            r"has 2 optical paths \(1, 2\); slides of one \(brightfield\) are supported",
        ),
        ({"frames": [LOSSLESS.encode(tiles_of(IMAGE)[0, 0])]}, "has 1 of the 4 frames of its image; bring"),
        ({"PlanarConfiguration": 1, "stored": RAW}, "cannot be opened as a DICOM slide: "),
        ({"kind": "LABEL"}, "holds no image of the slide itself, only LABEL; bring all files of its series"),
    ],
)  # fmt: skip
def test_slides_that_cannot_be_used_are_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    path = write_dicom_slide(tmp_path / "s.dcm", IMAGE, **options)
    with pytest.raises(SourceError, match=rf"s\.dcm {says}"):
        open_source(path)


def test_a_slide_without_a_pixel_size_is_refused_unless_one_is_given(tmp_path: Path) -> None:
    shared = [item(PixelMeasuresSequence=[item(SliceThickness="1")])]
    path = write_dicom_slide(tmp_path / "s.dcm", IMAGE, SharedFunctionalGroupsSequence=shared)
    with pytest.raises(MissingSpacing, match=r"s\.dcm does not state its pixel size"):
        open_source(path)
    assert open_source(path, mpp=0.5).geometry.extent == (32.0, 48.0)


@pytest.mark.parametrize(
    ("image", "origin"), [(IMAGE[:, :40], (10, 20)), (IMAGE, (15, 20)), (IMAGE[:, ::2, ::2], (10, 20.5))]
)
def test_several_scanned_areas_in_a_series_are_refused(
    tmp_path: Path, image: Any, origin: tuple[float, float]
) -> None:
    write_dicom_slide(tmp_path / "a.dcm", IMAGE)
    place = item(XOffsetInSlideCoordinateSystem=origin[0], YOffsetInSlideCoordinateSystem=origin[1])
    write_dicom_slide(tmp_path / "b.dcm", image, TotalPixelMatrixOriginSequence=[place])
    says = r"holds several scanned areas: b\.dcm \(.*\) is no level of a\.dcm .*; put each into a folder"
    with pytest.raises(SourceError, match=says):
        open_source(tmp_path)


def test_a_damaged_header_is_unreadable(tmp_path: Path) -> None:
    path = write_dicom_slide(tmp_path / "s.dcm", IMAGE)
    content = path.read_bytes()
    for cut in (200, content.index(b"VOLUME") + 40):
        path.write_bytes(content[:cut])
        with pytest.raises(
            UnreadableSource, match=r"s\.dcm has a damaged DICOM header: .*; copy the file again"
        ):
            open_source(path)


@pytest.mark.parametrize("stored", [RAW, JPEG, LOSSLESS])
def test_what_a_file_that_was_cut_short_has_lost_is_not_valid(tmp_path: Path, stored: Stored) -> None:
    path = write_dicom_slide(tmp_path / "s.dcm", IMAGE, stored=stored)
    whole = open_source(path).read((slice(0, 64), slice(0, 96))).values
    path.write_bytes(path.read_bytes()[:-100])
    pixels = open_source(path).read((slice(0, 64), slice(0, 96)))
    valid = np.ones((64, 96), bool)
    valid[32:, 48:] = False
    np.testing.assert_array_equal(pixels.valid, valid)
    np.testing.assert_array_equal(pixels.values, np.where(valid, whole, 255))


def test_a_slide_whose_frames_cannot_be_found_is_unreadable(tmp_path: Path) -> None:
    path = write_dicom_slide(tmp_path / "s.dcm", IMAGE)
    content = path.read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00OB")
    path.write_bytes(content[: pixels + 30])
    with pytest.raises(UnreadableSource, match=r"s\.dcm cannot be opened as a DICOM slide: "):
        open_source(path)


def test_big_endian_slides_are_refused(tmp_path: Path) -> None:
    path = write_dicom_slide(tmp_path / "s.dcm", IMAGE, stored=RAW)
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(path, header, enforce_file_format=True, little_endian=False, implicit_vr=False)
    with pytest.raises(SourceError, match="is compressed as Explicit VR Big Endian, which is not supported"):
        open_source(path)
