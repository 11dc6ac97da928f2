"""NRRD and MetaImage give the same volumes as NIfTI."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volume_files import (
    PLANES,
    SHAPE,
    SPACING,
    Voxels,
    affine_of,
    random_voxels,
    save,
    values_of,
)
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.itk import open_itk
from wsiseg.sources.nifti import open_nifti
from wsiseg.sources.volumes import open_volume


def itk_image(stored: Voxels, affine: Any) -> Any:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    image = sitk.GetImageFromArray(np.moveaxis(stored.T, 0, -1) if stored.ndim == 4 else stored.T)
    image.SetSpacing(SPACING)
    image.SetDirection((lps[:3, :3] / SPACING).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd"])
@pytest.mark.parametrize("plane", PLANES)
def test_nrrd_and_metaimage_are_the_same_volume_as_their_nifti(
    tmp_path: Path, suffix: str, plane: str
) -> None:
    stored = random_voxels(seed=17)
    sitk.WriteImage(itk_image(stored, PLANES[plane]), tmp_path / f"v.{suffix}", suffix == "nrrd")
    source = open_volume(tmp_path / f"v.{suffix}")
    nifti = open_nifti(save(tmp_path / "v.nii", stored, PLANES[plane]))
    assert source is not None
    assert source.dtype == np.int16
    np.testing.assert_array_equal(values_of(source), values_of(nifti))
    np.testing.assert_allclose(source.native.canonical_affine, nifti.native.canonical_affine, atol=1e-4)
    assert source.geometry == nifti.geometry
    assert source.channel_names == ("v",)


def test_components_and_a_fourth_axis_of_itk_files_are_channels(tmp_path: Path) -> None:
    stored = random_voxels((*SHAPE, 3), seed=18)
    sitk.WriteImage(itk_image(stored, affine_of()), tmp_path / "v.mha")
    np.testing.assert_array_equal(values_of(open_itk(tmp_path / "v.mha")), stored.T)
    sitk.WriteImage(sitk.GetImageFromArray(stored.T, isVector=False), tmp_path / "t.mha")
    source = open_itk(tmp_path / "t.mha")
    assert source.channel_names == ("channel 0", "channel 1", "channel 2")
    np.testing.assert_array_equal(values_of(source), stored.T[:, :, ::-1, ::-1])  # LPS


def test_itk_headers_whose_voxels_are_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    sitk.WriteImage(itk_image(random_voxels(), affine_of()), folder / "v.mhd")
    header = (folder / "v.mhd").read_text(encoding="ascii")
    (tmp_path / "out.raw").write_bytes((folder / "v.raw").read_bytes())
    (folder / "link.raw").symlink_to(tmp_path / "out.raw")
    for elsewhere in (
        "../out.raw",
        str(tmp_path / "out.raw"),
        "link.raw",
        "LIST",
        "v%02d.raw 1 4 1",
        "gone",
        "",
    ):
        (folder / "w.mhd").write_text(header.replace("v.raw", elsewhere), encoding="ascii")
        with pytest.raises(SourceError, match=r"w\.mhd names .* as the file of its voxels"):
            open_itk(folder / "w.mhd")
    (folder / "w.mha").write_text(header, encoding="ascii")
    with pytest.raises(SourceError, match=r"w\.mha names 'v\.raw' as the file of its voxels"):
        open_itk(folder / "w.mha")
    sitk.WriteImage(itk_image(random_voxels(), affine_of()), folder / "v.nhdr")
    detached = (folder / "v.nhdr").read_text(encoding="ascii")
    (folder / "v.nrrd").write_text(detached, encoding="ascii")
    for name in ("v.nhdr", "v.nrrd"):
        with pytest.raises(SourceError, match="is a header whose voxels are in another file"):
            open_itk(folder / name)


def test_itk_files_that_are_damaged_or_no_volumes_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for name in ("v.nrrd", "v.mha"):
        sitk.WriteImage(itk_image(random_voxels((30, 30, 30)), affine_of()), tmp_path / name, True)
        whole = (tmp_path / name).read_bytes()
        for keep in (len(whole) - 900, 700, 60, 0):
            (tmp_path / name).write_bytes(whole[:keep])
            with pytest.raises(SourceError) as caught:
                open_itk(tmp_path / name)
            assert str(caught.value).startswith(str(tmp_path / name))
            assert "\n" not in str(caught.value)
    sitk.WriteImage(sitk.GetImageFromArray(random_voxels((5, 6))), tmp_path / "flat.mha")
    with pytest.raises(SourceError, match="is a 2-D image; a volume has three axes"):
        open_itk(tmp_path / "flat.mha")
    pairs = np.zeros((*SHAPE, 2, 2), np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(pairs, isVector=True), tmp_path / "five.nrrd")
    with pytest.raises(SourceError, match="three axes and one of channels"):
        open_itk(tmp_path / "five.nrrd")
    with pytest.raises(UnreadableSource, match=r"v\.png is none of \.nrrd"):
        open_itk(tmp_path / "v.png")
    with pytest.raises(UnreadableSource, match=r"gone\.mha cannot be read"):
        open_itk(tmp_path / "gone.mha")
    voxels = random_voxels(dtype=np.float32)
    voxels[1, 2, 3] = np.nan
    sitk.WriteImage(itk_image(voxels, affine_of()), tmp_path / "nan.nrrd")
    with pytest.raises(
        SourceError, match=r"NaN or infinite \(1 of them, the first at \(i, j, k\) = \(1, 2, 3\)\)"
    ):
        open_itk(tmp_path / "nan.nrrd")


def test_a_nrrd_without_space_is_told(tmp_path: Path) -> None:
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 1 3\nspacings: 1 2 3\nencoding: raw\n\n"
    (tmp_path / "v.nrrd").write_bytes(header + struct.pack("6B", *range(6)))
    source = open_itk(tmp_path / "v.nrrd")
    (problem,) = source.problems
    assert "does not state its orientation" in problem
    assert source.geometry.spacing == (3.0, 2.0, 1.0)
    np.testing.assert_array_equal(values_of(source)[0, :, 0], [[1, 0], [3, 2], [5, 4]])  # LPS
