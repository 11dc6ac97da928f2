"""A DICOM series is a volume, or one clear sentence says which slice is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, JPEG2000Lossless

from tests.volume_files import (
    PLANES,
    Voxels,
    affine_of,
    canonical,
    change,
    random_voxels,
    save,
    values_of,
    write_series,
)
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.dicom_series import open_series
from wsiseg.sources.nifti import open_nifti
from wsiseg.sources.volumes import open_volume


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
def test_a_dicom_series_is_the_same_volume_as_its_nifti(tmp_path: Path, plane: str, dtype: str) -> None:
    stored = random_voxels(seed=10, dtype=dtype)
    write_series(tmp_path / "dicom", stored, PLANES[plane])
    (tmp_path / "dicom" / "notes.txt").write_text("not DICOM", encoding="utf-8")
    nifti = open_nifti(save(tmp_path / "v.nii", stored, PLANES[plane]))
    source = open_volume(tmp_path / "dicom")
    assert source is not None
    assert source.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(values_of(source), values_of(nifti))
    np.testing.assert_allclose(source.native.canonical_affine, nifti.native.canonical_affine, atol=1e-4)
    assert source.geometry == nifti.geometry
    assert (source.format, source.channel_names, source.problems) == ("DICOM series", ("dicom",), ())
    mask = (values_of(source)[0] > 100).astype(np.uint8)
    nib.save(source.native.nifti(mask), tmp_path / "mask.nii")
    np.testing.assert_array_equal(canonical(tmp_path / "mask.nii"), mask)


def test_rescaled_slices_are_real_numbers_also_where_each_has_its_own_factor(tmp_path: Path) -> None:
    stored = random_voxels(seed=11)
    paths = write_series(tmp_path / "s", stored, affine_of(), RescaleSlope="0.5", RescaleIntercept="-1024")
    source = open_series(tmp_path / "s")
    assert source.dtype == np.float32
    np.testing.assert_array_equal(values_of(source)[0], stored.T * np.float32(0.5) - 1024)
    change(paths[2], RescaleSlope="2", RescaleIntercept="3")
    expected = stored.T * np.float32(0.5) - 1024
    expected[2] = stored.T[2] * 2 + 3
    np.testing.assert_array_equal(values_of(open_series(tmp_path / "s"))[0], expected)


def test_a_tilted_gantry_is_told_and_its_slices_stay_where_they_are(tmp_path: Path) -> None:
    affine = affine_of()
    affine[1, 2] = 0.4
    stored = random_voxels(seed=12)
    write_series(tmp_path / "s", stored, affine)
    source = open_series(tmp_path / "s")
    assert source.problems == (
        f"{tmp_path / 's'} has slices that are shifted in their plane (a tilted gantry)",
    )
    np.testing.assert_allclose(source.native.affine @ (0, 0, 3, 1), affine @ (0, 0, 3, 1), atol=1e-5)


def test_missing_repeated_and_shifted_slices_are_named_with_their_position(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    paths = write_series(folder, random_voxels((5, 6, 8)), affine_of((0, 1, 2), (-1, -1, 1)))
    kept = paths[3].read_bytes()
    paths[3].unlink()
    # Slice 2 lies at 7.75 + 2 * 3.25 mm.
    says = r"lacks 1 slice: after the one at 14\.25 mm .* the next is 6\.50 mm on, elsewhere 3\.25 mm"
    with pytest.raises(SourceError, match=says):
        open_series(folder)
    paths[4].unlink()
    with pytest.raises(SourceError, match="lacks 2 slices: after the one at 14.25 mm"):
        open_series(folder)
    write_series(folder, random_voxels((5, 6, 8)), affine_of((0, 1, 2), (-1, -1, 1)))
    (folder / "again.dcm").write_bytes(kept)
    with pytest.raises(SourceError, match=r"two slices at 17\.50 mm .*\(.*again\.dcm.*\); leave one"):
        open_series(folder)
    (folder / "again.dcm").unlink()
    position = list(pydicom.dcmread(paths[3]).ImagePositionPatient)
    change(paths[3], ImagePositionPatient=[*position[:2], position[2] + 0.5])
    with pytest.raises(SourceError, match="has unevenly spaced slices: after the one at 14.25 mm"):
        open_series(folder)
    change(paths[3], ImagePositionPatient=[position[0] + 5, *position[1:]])
    with pytest.raises(SourceError, match=rf"{paths[3].name} is 5\.00 mm off the line of the other slices"):
        open_series(folder)


def test_several_series_are_listed_and_one_is_chosen_by_uid_or_number(tmp_path: Path) -> None:
    first, second = random_voxels(seed=13), random_voxels((5, 6, 3), seed=14)
    write_series(tmp_path / "s", first, affine_of(), uid="1.2.9", SeriesNumber="1")
    write_series(tmp_path / "s", second, affine_of(), uid="1.2.4", SeriesNumber="2", Modality="")
    listed = r"1: 1\.2\.9 \(MR, 4 slices\); 2: 1\.2\.4 \(no modality, 3 slices\)"
    with pytest.raises(SourceError, match=rf"holds 2 series; choose one by UID or number: {listed}"):
        open_volume(tmp_path / "s")
    with pytest.raises(SourceError, match=rf"holds no series 3; .*{listed}"):
        open_series(tmp_path / "s", series=3)
    for choice in (2, "2", "1.2.4"):
        source = open_volume(tmp_path / "s", series=choice)
        assert source is not None
        np.testing.assert_array_equal(values_of(source)[0], second.T)
    np.testing.assert_array_equal(values_of(open_series(tmp_path / "s", series="1.2.9"))[0], first.T)


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"Rows": 3, "Columns": 10}, r"another size \(rows, columns\) than .*: \(3, 10\), not \(6, 5\)"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "another orientation than"),
        ({"PixelSpacing": [1, 1]}, r"another pixel spacing than .*: \(1\.0, 1\.0\), not \(2\.0, 0\.5\)"),
        (
            {"PixelRepresentation": 0},
            r"another pixel type \(bits, signed\) than .*: \(16, 0\), not \(16, 1\)",
        ),
        ({"ImagePositionPatient": None}, "does not state its ImagePositionPatient"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "has RGB pixels"),
        ({"NumberOfFrames": 2}, "has 2 frames without a place for each"),
        ({"ModalityLUTSequence": [Dataset()]}, "has a table of values"),
        ({"PixelData": b"\0" * 10}, "cannot be decoded: .*; copy it again or decompress the series"),
    ],
)
def test_a_slice_unlike_the_others_is_refused_by_name(
    tmp_path: Path, attributes: dict[str, Any], says: str
) -> None:
    paths = write_series(tmp_path / "s", random_voxels(), affine_of())
    change(paths[3], **attributes)
    with pytest.raises(SourceError, match=rf"{paths[3].name}.*{says}") as caught:
        open_series(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_a_header_value_that_is_no_number_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", random_voxels(), affine_of())
    raw = paths[1].read_bytes()
    value = pydicom.dcmread(paths[1]).ImagePositionPatient[2].original_string.encode()
    assert value in raw
    paths[1].write_bytes(raw.replace(value, b"x" * len(value)))
    with pytest.raises(UnreadableSource, match="the DICOM header of an image makes no sense"):
        open_series(tmp_path / "s")


def test_compressed_slices_that_cannot_be_decoded_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", random_voxels(), affine_of())
    ds = pydicom.dcmread(paths[0])
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51 nonsense "])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.save_as(paths[0])
    with pytest.raises(UnreadableSource, match=rf"{paths[0].name} cannot be decoded"):
        open_series(tmp_path / "s")


def test_a_run_length_encoded_series_is_decoded(tmp_path: Path) -> None:
    stored = random_voxels(seed=15)
    for path in write_series(tmp_path / "s", stored, affine_of()):
        ds = pydicom.dcmread(path)
        ds.compress(pydicom.uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        ds.save_as(path)
    np.testing.assert_array_equal(values_of(open_series(tmp_path / "s"))[0], stored.T)


def test_lone_images_damaged_files_and_folders_without_dicom_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", random_voxels(), affine_of())
    with pytest.raises(SourceError, match=rf"{paths[0].name} is a lone 2-D image; give the folder"):
        open_volume(paths[0])
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(paths[0].read_bytes()[:141])
    with pytest.raises(UnreadableSource, match=r"damaged\.dcm has a damaged DICOM header"):
        open_series(damaged)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("none", encoding="utf-8")
    with pytest.raises(UnreadableSource, match="empty holds no DICOM image"):
        open_series(empty)
    with pytest.raises(UnreadableSource, match="no such file"):
        open_series(tmp_path / "gone")


def enhanced(path: Path, stored: Voxels, affine: Any) -> Path:
    """One enhanced multi-frame file, its frames in reverse order."""
    parts = write_series(path.parent / "parts", stored, affine)
    singles = [pydicom.dcmread(part) for part in reversed(parts)]
    ds = pydicom.dcmread(parts[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    ds.NumberOfFrames = len(singles)
    ds.PixelData = b"".join(single.PixelData for single in singles)
    frames = []
    for single in singles:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = single.ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    shared, plane, measures, values = Dataset(), Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient, measures.PixelSpacing = ds.ImageOrientationPatient, ds.PixelSpacing
    values.RescaleSlope, values.RescaleIntercept = "2", "1"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    shared.PixelValueTransformationSequence = [values]
    ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence = frames, [shared]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, name)
    ds.save_as(path)
    return path


def test_an_enhanced_multi_frame_file_is_a_volume(tmp_path: Path) -> None:
    stored = random_voxels(seed=16)
    path = enhanced(tmp_path / "multi.dcm", stored, PLANES["oblique"])
    nifti = open_nifti(save(tmp_path / "v.nii", stored, PLANES["oblique"]))
    source = open_volume(path)
    assert source is not None
    np.testing.assert_array_equal(values_of(source), values_of(nifti) * np.float32(2) + 1)
    ds = pydicom.dcmread(path)
    del ds.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence
    ds.save_as(path)
    with pytest.raises(SourceError, match=r"multi\.dcm does not state its ImagePositionPatient"):
        open_series(path)
