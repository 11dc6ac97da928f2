"""A physical point is the same voxel, however a file stores its axes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.volume_files import (
    OBLIQUE,
    ORIENTATIONS,
    SHAPE,
    SPACING,
    affine_of,
    canonical,
    random_voxels,
    save,
    values_of,
)
from wsiseg.sources.native import native_grid
from wsiseg.sources.nifti import open_nifti


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_a_physical_point_is_the_same_voxel_in_all_48_orientations(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    stored = random_voxels(seed=1)
    affine = affine_of(axes, signs)
    source = open_nifti(save(tmp_path / "v.nii", stored, affine))
    spacing = tuple(SPACING[axes.index(a)] for a in (2, 1, 0))
    assert source.geometry.axes == "zyx"
    assert source.geometry.unit == "millimeter"
    assert source.geometry.spacing == spacing
    assert source.geometry.shape == tuple(SHAPE[axes.index(a)] for a in (2, 1, 0))
    assert source.problems == ()
    # The canonical grid begins in the corner of the lowest Right, Anterior and Superior coordinates.
    far = affine[:3, :3] @ (np.array(SHAPE) - 1) + affine[:3, 3]
    origin = np.minimum(affine[:3, 3], far)
    values = values_of(source)[0]
    zyx = np.indices(values.shape).reshape(3, -1)
    points = zyx[::-1] * np.array(spacing[::-1])[:, None] + origin[:, None]
    ijk = np.linalg.inv(affine) @ np.vstack([points, np.ones(points.shape[1])])
    i, j, k = np.rint(ijk[:3]).astype(int)
    np.testing.assert_array_equal(values.ravel(), stored[i, j, k])
    xyz = np.vstack([zyx[::-1], np.ones(points.shape[1])])
    np.testing.assert_allclose((source.native.canonical_affine @ xyz)[:3], points, atol=1e-5)
    np.testing.assert_array_equal(source.native.to_native(values), stored)
    np.testing.assert_array_equal(source.native.from_native(stored), values)
    assert np.shares_memory(source.native.from_native(stored), stored)
    assert np.shares_memory(source.native.to_native(values), values)


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::5])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_any_region_is_that_part_of_the_whole_and_0_outside(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...], suffix: str
) -> None:
    path = save(tmp_path / f"v.{suffix}", random_voxels(seed=2), affine_of(axes, signs, turn=OBLIQUE))
    source = open_nifti(path)
    padded = np.pad(canonical(path), 9)
    nz, ny, nx = source.geometry.shape
    for region in (
        (slice(1, 3), slice(2, 4), slice(0, 1)),
        (slice(-2, nz + 3), slice(-1, 2), slice(nx - 1, nx + 5)),
        (slice(nz + 1, nz + 4), slice(0, ny), slice(0, nx)),
        (slice(-5, -2), slice(0, ny), slice(0, nx)),
        (slice(2, 2), slice(0, ny), slice(0, nx)),
    ):
        pixels = source.read(region)
        expected = padded[tuple(slice(s.start + 9, s.stop + 9) for s in region)]
        np.testing.assert_array_equal(pixels.values[0], expected)
        assert pixels.values.dtype == np.int16
        assert pixels.valid.shape == expected.shape
        assert pixels.all_valid
    assert (source.levels, source.num_channels, source.outside) == ((source,), 1, 0)
    assert source.channel_names == ("v",)
    assert source.format == "NIfTI"


def test_threads_read_the_same_voxels(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", random_voxels((40, 30, 20), seed=3))
    source, whole = open_nifti(path), canonical(path)
    regions = [(slice(z, z + 2), slice(0, 30), slice(0, 40)) for z in range(19)] * 4
    with ThreadPoolExecutor(4) as pool:
        for region, pixels in zip(regions, pool.map(source.read, regions), strict=True):
            np.testing.assert_array_equal(pixels.values[0], whole[region])


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::7])
def test_a_mask_is_written_onto_the_grid_and_header_of_the_file(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = affine_of(axes, signs, turn=OBLIQUE)
    path = save(tmp_path / "v.nii.gz", random_voxels(seed=4), affine, descrip=b"J. Doe", scl_slope=2.0)
    source = open_nifti(path)
    mask = (values_of(source)[0] > 500).astype(np.uint8)
    nib.save(source.native.nifti(mask), tmp_path / "mask.nii.gz")
    written: Any = nib.load(tmp_path / "mask.nii.gz")
    original: Any = nib.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(original.dataobj) > 500)
    np.testing.assert_array_equal(written.affine, original.affine)
    assert written.get_data_dtype() == np.uint8
    for name in ("sform_code", "qform_code", "xyzt_units"):
        assert written.header[name] == original.header[name]
    assert written.header["descrip"] == b""
    np.testing.assert_array_equal(values_of(open_nifti(tmp_path / "mask.nii.gz"))[0], mask)
    with pytest.raises(ValueError, match=r"voxels of shape \(1, 2, 3\) do not fit the volume's"):
        source.native.nifti(np.zeros((1, 2, 3), np.uint8))


def test_a_mask_of_a_volume_that_is_no_nifti_is_written_onto_its_affine(tmp_path: Path) -> None:
    affine = affine_of((2, 0, 1), (1, -1, 1), turn=OBLIQUE)
    native = native_grid(tmp_path, affine, SHAPE)
    mask = random_voxels(native.geometry.shape, dtype=np.uint8)
    nib.save(native.nifti(mask), tmp_path / "mask.nii")
    source = open_nifti(tmp_path / "mask.nii")
    np.testing.assert_array_equal(values_of(source)[0], mask)
    np.testing.assert_allclose(source.native.affine, affine, atol=1e-5)
    long = native_grid(tmp_path, np.eye(4), (40_000, 1, 2))
    assert isinstance(long.nifti(np.zeros((2, 1, 40_000), np.uint8)), nib.Nifti2Image)
