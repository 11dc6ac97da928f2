"""DICOM slides are read from whatever files make them up; what is lost of them is void."""

from __future__ import annotations

import gc
import logging
import shutil
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pydicom
import pytest
from PIL import Image
from pydicom.uid import SegmentationStorage

import wsiseg
from tests.cases import CROPS, NAMES, SMALL, mask_of
from tests.conftest import random_image
from tests.images import Rgb, around, assert_reads, padded, read_many, spoilt_map
from tests.slide_files import (
    JPEG,
    LOSSLESS,
    RAW,
    TILE,
    Stored,
    item,
    spoil_frame,
    tiles_of,
    write_dicom_slide,
)
from tests.volume_files import affine_of, random_voxels, write_series
from wsiseg.errors import SourceError
from wsiseg.files import fingerprint
from wsiseg.geometry import Geometry
from wsiseg.sources import image_files, open_source

SHAPE = (150, 212)


def write_pyramid(folder: Path, image: Rgb, **options: Any) -> list[Rgb]:
    """Three levels by 1, 2 and 6, a file each, with a label, an overview and a thumbnail beside them."""
    levels = [image, image[:, ::2, ::2], image[:, ::6, ::6]]
    for number, (level, downsample) in enumerate(zip(levels, (1.0, 2.0, 6.0), strict=True)):
        tile = (32, 48) if number < 2 else (16, 24)
        write_dicom_slide(folder / f"{number}.dcm", level, downsample=downsample, tile=tile, **options)
    for kind in ("LABEL", "OVERVIEW", "THUMBNAIL"):
        write_dicom_slide(folder / f"{kind.lower()}.dcm", random_image((300, 20)), kind=kind, **options)
    return levels


@pytest.mark.parametrize("stored", [RAW, LOSSLESS])
@pytest.mark.parametrize("named", ["", "0.dcm", "2.dcm", "label.dcm"])
def test_a_pyramid_is_read_level_by_level_whichever_of_its_files_is_named(
    tmp_path: Path, stored: Stored, named: str
) -> None:
    folder = tmp_path / "slide"
    levels = write_pyramid(folder, random_image(SHAPE, seed=21), stored=stored)
    (folder / "notes.txt").write_text("no DICOM", encoding="utf-8")
    source = open_source(folder / named)
    assert source.geometry == Geometry(axes="yx", shape=SHAPE, spacing=(0.4, 0.25), unit="micrometer")
    assert source.format == "DICOM slide"
    assert len(source.levels) == 3
    for level, expected in zip(source.levels, levels, strict=True):
        np.testing.assert_allclose(level.geometry.extent, (60.0, 53.0))
        for region in around(expected.shape[1:]):
            assert_reads(level, expected, region)
    assert [s.geometry for s in source.levels[1].levels] == [s.geometry for s in source.levels[1:]]
    assert open_source(folder / named, mpp=0.7).geometry.spacing == (0.7, 0.7)


def test_a_concatenation_is_one_image_and_none_of_its_parts_may_be_missing(tmp_path: Path) -> None:
    image = random_image(SHAPE, seed=22)
    for number in (1, 2, 3):
        write_dicom_slide(tmp_path / "s" / f"{4 - number}.dcm", image, part=(number, 3))
    for path in (tmp_path / "s", tmp_path / "s" / "1.dcm"):
        for region in around(SHAPE):
            assert_reads(open_source(path), image, region)
    (tmp_path / "s" / "2.dcm").unlink()
    with pytest.raises(
        SourceError, match=r"\.dcm is one of 3 files that make up an image, and 2 are there; bring"
    ):
        open_source(tmp_path / "s")


@pytest.mark.parametrize("stored", [RAW, JPEG, LOSSLESS])
def test_what_was_not_scanned_is_glass(tmp_path: Path, stored: Stored) -> None:
    image = random_image(SHAPE, seed=23)
    there = [(4, 4), (0, 1), (2, 3)]
    path = write_dicom_slide(tmp_path / "s.dcm", image, stored=stored, only=there)
    expected = np.full_like(image, 255)
    for (r, c), tile in tiles_of(image).items():
        if (r, c) in there:
            decoded = imagecodecs.jpeg8_decode(stored.encode(tile)) if stored is JPEG else tile
            place = (slice(None), slice(r * 32, r * 32 + 32), slice(c * 48, c * 48 + 48))
            expected[place] = np.moveaxis(decoded, -1, 0)[:, : SHAPE[0] - r * 32, : SHAPE[1] - c * 48]
    for region in around(SHAPE):
        assert_reads(open_source(path), expected, region)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_frame_that_cannot_be_decoded_is_not_valid_and_the_rest_is_read(
    tmp_path: Path, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    image = random_image(SHAPE, seed=24)
    path = write_dicom_slide(tmp_path / "s.dcm", image)
    spoil_frame(path, 2 * 5 + 3)
    spoilt = (slice(64, 96), slice(144, 192))
    regions = [*around(SHAPE), spoilt, (slice(63, 65), slice(191, 193)), (slice(0, 64), slice(0, 212))]
    with caplog.at_level(logging.WARNING):
        many = read_many(open_source(path), regions * 3, threads=threads)
    for region, pixels in zip(regions * 3, many, strict=True):
        valid = spoilt_map(SHAPE, spoilt, region)
        np.testing.assert_array_equal(pixels.valid, valid)
        np.testing.assert_array_equal(pixels.values, np.where(valid, padded(image, region), 255))
    assert "s.dcm, level 0, tile 2, 3 cannot be decoded" in caplog.text


def test_a_frame_of_another_size_is_not_valid(tmp_path: Path) -> None:
    image = random_image((64, 96), seed=25)
    frames = [LOSSLESS.encode(tile) for tile in tiles_of(image).values()]
    frames[1] = LOSSLESS.encode(np.zeros((16, 48, 3), np.uint8))
    path = write_dicom_slide(tmp_path / "s.dcm", image, frames=frames)
    whole = (slice(0, 64), slice(0, 96))
    valid = spoilt_map((64, 96), (slice(0, 32), slice(48, 96)), whole)
    np.testing.assert_array_equal(open_source(path).read(whole).valid, valid)


def test_a_slide_whose_tiles_are_partly_lost_is_segmented_with_void_there(tmp_path: Path) -> None:
    crop = np.asarray(Image.open(CROPS / "images" / f"{NAMES[0]}.png").convert("RGB"))[:192, :240]
    folder = tmp_path / "1.2.840.5"
    path = write_dicom_slide(folder / "s.dcm", np.moveaxis(crop, -1, 0))
    report = wsiseg.segment(folder, tmp_path / "out", "breast-tissue3", mpp=0.5, **SMALL)
    assert report.case == "1.2.840.5"
    assert not (mask_of(report) == 255).any()
    spoil_frame(path, 0)
    report = wsiseg.segment(path, tmp_path / "out", "breast-tissue3", mpp=0.5, **SMALL)
    np.testing.assert_array_equal(mask_of(report)[:32, :48], 255)
    assert (mask_of(report) == 255).sum() == 32 * 48


def test_a_slide_belongs_to_all_files_of_its_series(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_pyramid(folder, random_image(SHAPE, seed=26))
    write_dicom_slide(folder / "other.dcm", random_image((40, 60)), series="1.2.4")
    files = image_files(folder / "1.dcm")
    assert files == tuple(folder / name for name in ("0.dcm", "1.dcm", "2.dcm"))
    assert image_files(folder) == (folder,)
    before = fingerprint(folder / "1.dcm", files=files)
    assert set(before) == {"fingerprint"}
    write_dicom_slide(folder / "0.dcm", random_image(SHAPE, seed=27))
    assert fingerprint(folder / "1.dcm", files=image_files(folder / "1.dcm")) != before
    alone = write_dicom_slide(tmp_path / "alone.dcm", random_image((40, 60)))
    assert set(fingerprint(alone, files=image_files(alone))) == {"sha256"}


def test_two_slides_in_a_folder_are_told_apart_by_naming_a_file(tmp_path: Path) -> None:
    first, second = random_image(SHAPE, seed=28), random_image((90, 100), seed=29)
    write_dicom_slide(tmp_path / "a.dcm", first, series="1.2.7")
    write_dicom_slide(tmp_path / "b.dcm", second, series="1.2.8")
    listed = r"a\.dcm \(series 1\.2\.7\), b\.dcm \(series 1\.2\.8\)"
    with pytest.raises(SourceError, match=rf"holds 2 slides; name a file of the one that is meant: {listed}"):
        open_source(tmp_path)
    assert_reads(open_source(tmp_path / "a.dcm"), first, (slice(0, 150), slice(0, 212)))
    assert_reads(open_source(tmp_path / "b.dcm"), second, (slice(0, 90), slice(0, 100)))


def test_a_second_copy_of_a_file_is_the_same_slide(tmp_path: Path) -> None:
    image = random_image(SHAPE, seed=30)
    path = write_dicom_slide(tmp_path / "a.dcm", image)
    shutil.copy(path, tmp_path / "a (1).dcm")
    assert_reads(open_source(tmp_path), image, (slice(0, 150), slice(0, 212)))


def test_a_folder_with_a_volume_stays_a_volume_and_its_slide_can_be_named(tmp_path: Path) -> None:
    write_series(tmp_path, random_voxels(), affine_of())
    image = random_image((40, 60), seed=31)
    path = write_dicom_slide(tmp_path / "slide.dcm", image)
    assert open_source(tmp_path).geometry.axes == "zyx"
    assert_reads(open_source(path), image, (slice(0, 40), slice(0, 60)))


def test_a_segmentation_beside_a_slide_is_no_volume(tmp_path: Path) -> None:
    image = random_image((40, 60), seed=32)
    path = write_dicom_slide(tmp_path / "slide.dcm", image)
    header = pydicom.dcmread(path)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    header.save_as(tmp_path / "seg.dcm")
    assert_reads(open_source(tmp_path), image, (slice(0, 40), slice(0, 60)))


def test_of_several_focal_planes_the_middle_one_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = random_image((64, 96), seed=33)
    planes = [LOSSLESS.encode(t) for k in range(3) for t in tiles_of(image // (3 - k)).values()]
    measures = item(PixelSpacing=["0.0004", "0.00025"], SpacingBetweenSlices="0.002")
    write_dicom_slide(
        tmp_path / "s.dcm", image, frames=planes, TotalPixelMatrixFocalPlanes=3,
        SharedFunctionalGroupsSequence=[item(PixelMeasuresSequence=[measures])],
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert_reads(open_source(tmp_path), image // 2, (slice(0, 64), slice(0, 96)))
    assert "has 3 focal planes; the middle one, at 2 µm, is read" in caplog.text


def test_focal_planes_may_be_files_of_their_own_each_stored_in_its_own_way(tmp_path: Path) -> None:
    image = random_image((64, 96), seed=34)
    kinds = ((RAW, 0.0, TILE), (LOSSLESS, 0.002, (16, 24)), (JPEG, 0.004, TILE))
    for number, (stored, height, tile) in enumerate(kinds):
        origin = item(XOffsetInSlideCoordinateSystem=10, YOffsetInSlideCoordinateSystem=20)
        origin.ZOffsetInSlideCoordinateSystem = height
        write_dicom_slide(
            tmp_path / f"{number}.dcm", image // (number + 1), stored=stored, tile=tile,
            TotalPixelMatrixOriginSequence=[origin],
        )  # fmt: skip
    assert_reads(open_source(tmp_path), image // 2, (slice(0, 64), slice(0, 96)))


def test_files_are_closed_with_their_source(tmp_path: Path) -> None:
    path = write_dicom_slide(tmp_path / "s.dcm", random_image((40, 60)))
    source = open_source(path)
    source.read((slice(0, 40), slice(0, 60)))
    del source
    gc.collect()  # an unclosed file is a ResourceWarning, and warnings are errors here


@pytest.mark.parametrize("name", ["highdicom_sm_image.dcm", "multiframe_camelyon_challenge_image.dcm"])
def test_slides_of_other_programs_are_read_as_openslide_reads_them(shared: Path, name: str) -> None:
    path = shared / "data" / "wsi-formats" / name
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/wsi-formats/{name} beside the project")
    with openslide.OpenSlide(str(path)) as handle:
        expected = np.asarray(handle.read_region((0, 0), 0, handle.dimensions))
        spacing = [float(handle.properties[f"openslide.mpp-{axis}"]) for axis in "yx"]
    assert (expected[..., 3] == 255).all()
    source = open_source(path)
    np.testing.assert_allclose(source.geometry.spacing, spacing, rtol=1e-4)
    for region in around(source.geometry.shape):
        assert_reads(source, np.moveaxis(expected[..., :3], -1, 0), region)
