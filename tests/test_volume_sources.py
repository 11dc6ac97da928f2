"""Volumes of every format give the same voxels at the same physical place, or one clear sentence."""

from __future__ import annotations

import gzip
import itertools
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.dicom_series import SLIDE_CLASS, open_series
from wsiseg.sources.itk import open_itk
from wsiseg.sources.nifti import open_modalities, open_nifti
from wsiseg.sources.volume import VolumeSource, native_grid
from wsiseg.sources.volumes import open_volume

Voxels = NDArray[Any]
SPACING = (0.5, 2.0, 3.25)  # of the file's axes i, j, k
SHAPE = (5, 6, 4)
ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = (
    np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    @ np.array([[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]])
)  # fmt: skip


def random_voxels(shape: tuple[int, ...] = SHAPE, *, seed: int = 0, dtype: Any = np.int16) -> Voxels:
    return np.random.default_rng(seed).integers(-900, 3000, shape).astype(dtype)


def affine_of(
    axes: tuple[int, ...] = (0, 1, 2), signs: tuple[int, ...] = (1, 1, 1), *, turn: Any = None
) -> NDArray[np.float64]:
    """File axis n runs along canonical axis `axes[n]`, forwards or backwards."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for n, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, n] = sign * SPACING[n]
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-31.5, 12.25, 7.75)
    return affine


def save(path: Path, voxels: Voxels, affine: Any = None, **fields: Any) -> Path:
    """A NIfTI file in mm; `fields` are set in its header as they are, whatever nibabel thinks of them."""
    image = nib.Nifti1Image(voxels, affine_of() if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        raw = bytearray(file.read())
    header = np.ndarray((), nib.Nifti1Header.template_dtype, buffer=raw)
    for name, value in fields.items():
        header[name] = value
    with opener(path, "wb") as file:
        file.write(raw)
    return path


def values_of(source: VolumeSource) -> Voxels:
    pixels = source.read(source.geometry.whole)
    assert pixels.all_valid
    assert pixels.values.dtype == source.dtype
    return pixels.values


def canonical(path: Path) -> Voxels:
    """What nibabel makes of a file, (z, y, x)."""
    image: Any = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).T


# --- the grid


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


# --- NIfTI


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("<i2", "int16"),
        (">i2", "int16"),
        ("<u2", "uint16"),
        ("u1", "uint8"),
        ("i1", "int16"),
        ("<i4", "float32"),
        (">f4", "float32"),
        ("<f8", "float32"),
    ],
)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_voxel_types_that_matter_are_kept(tmp_path: Path, stored: str, read: str, suffix: str) -> None:
    voxels = random_voxels(seed=5).astype(stored)
    header = nib.Nifti1Header(endianness=">" if stored[0] == ">" else "<")
    header.set_data_dtype(voxels.dtype)
    image = nib.Nifti1Image(voxels, affine_of(), header=header)
    path = tmp_path / f"v.{suffix}"
    nib.save(image, path)
    source = open_nifti(path)
    assert source.dtype == np.dtype(read)
    assert source.dtype.isnative
    np.testing.assert_array_equal(values_of(source)[0], voxels.T.astype(read))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_slope_and_intercept_are_applied(tmp_path: Path, suffix: str) -> None:
    stored = random_voxels(seed=6)
    path = save(tmp_path / f"v.{suffix}", stored, scl_slope=0.25, scl_inter=-7.5)
    source = open_nifti(path)
    assert source.dtype == np.float32
    np.testing.assert_array_equal(values_of(source)[0], stored.T * np.float32(0.25) - np.float32(7.5))
    np.testing.assert_array_equal(values_of(source)[0], canonical(path))


@pytest.mark.parametrize("shape", [(*SHAPE, 3), (*SHAPE, 1, 3)])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_fourth_axis_or_a_vector_is_channels(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    stored = random_voxels(shape, seed=7)
    source = open_nifti(save(tmp_path / f"v.{suffix}", stored, affine_of((1, 0, 2), (1, -1, 1))))
    assert source.channel_names == ("channel 0", "channel 1", "channel 2")
    expected = np.moveaxis(stored.reshape(*SHAPE, 3), -1, 0)[:, :, ::-1].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(values_of(source), expected)


def test_nifti_2_is_read_like_nifti_1(tmp_path: Path) -> None:
    stored = random_voxels(seed=8)
    nib.save(nib.Nifti2Image(stored, affine_of()), tmp_path / "v.nii.gz")
    source = open_nifti(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(values_of(source)[0], stored.T)
    assert isinstance(source.native.nifti(np.zeros(source.geometry.shape, np.uint8)), nib.Nifti2Image)


def test_the_unit_of_the_header_becomes_millimetres(tmp_path: Path) -> None:
    for code, factor in ((3, 1e-3), (1, 1e3), (10, 1)):  # micron, metre, mm and seconds
        source = open_nifti(save(tmp_path / "v.nii", random_voxels(), xyzt_units=code))
        assert source.geometry.spacing == pytest.approx((3.25 * factor, 2.0 * factor, 0.5 * factor))
        image = source.native.nifti(np.zeros(source.geometry.shape, np.uint8))
        np.testing.assert_allclose(image.affine, affine_of())  # the header's own unit


def test_what_a_header_leaves_open_or_says_twice_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", random_voxels(), sform_code=0, qform_code=0)
    source = open_nifti(path)
    (problem,) = source.problems
    assert problem == (
        f"{path} does not state its orientation; "
        "its axes are taken to run to the patient's Left, Anterior and Superior"
    )
    np.testing.assert_array_equal(values_of(source)[0], canonical(path))
    image = source.native.nifti(np.zeros(source.geometry.shape, np.uint8))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (0, 0)
    for code in (0, 7):  # none, and one that does not exist
        (problem,) = open_nifti(save(path, random_voxels(), xyzt_units=code)).problems
        assert problem == f"{path} does not state its unit of length; millimetres are assumed"
    (problem,) = open_nifti(save(path, random_voxels(), pixdim=[1, 1, 2, 3.25, 0, 0, 0, 0])).problems
    assert "two voxel sizes per axis (0.5 and 1, 2 and 2, 3.25 and 3.25 mm)" in problem
    single = open_volume(save(path, random_voxels((5, 6, 1))))
    assert single is not None
    (problem,) = single.problems
    assert problem == f"{path} is a single slice of shape (5, 6, 1)"


def test_the_qform_counts_where_there_is_no_sform(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", random_voxels(), affine_of((1, 2, 0), (1, -1, -1), turn=OBLIQUE))
    image: Any = nib.load(path)
    image.set_qform(image.affine, code=1)
    image.set_sform(np.eye(4), code=0)
    nib.save(image, tmp_path / "q.nii")
    source = open_nifti(tmp_path / "q.nii")
    np.testing.assert_allclose(source.native.affine, open_nifti(path).native.affine, atol=1e-5)
    np.testing.assert_array_equal(values_of(source), values_of(open_nifti(path)))


@pytest.mark.parametrize(
    "rows",
    [np.zeros((3, 4)), np.full((3, 4), np.nan), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]])],
)
def test_an_affine_without_inverse_is_refused(tmp_path: Path, rows: Voxels) -> None:
    path = save(tmp_path / "v.nii", random_voxels(), srow_x=rows[0], srow_y=rows[1], srow_z=rows[2])
    with pytest.raises(SourceError, match=r"v\.nii has the affine .* which does not place voxels in space"):
        open_nifti(path)


def test_a_large_file_is_read_in_parts_and_not_kept_in_memory(tmp_path: Path) -> None:
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        pytest.skip("peak memory is reset through /proc")
    path = tmp_path / "large.nii"
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 1000))
    header.set_data_dtype(np.int16)
    header.set_sform(affine_of(), code=1)
    header.set_data_offset(352)
    plane = np.arange(1024 * 1024, dtype=np.int64).astype(np.int16)
    with path.open("wb") as file:
        file.write(header.binaryblock)
        file.seek(352 + 700 * plane.nbytes)
        file.write(plane.tobytes())
        file.truncate(352 + 1000 * plane.nbytes)
    source = open_nifti(path)
    before = _status("VmRSS")
    peak.write_text("5")
    values = source.read((slice(696, 704), slice(0, 1024), slice(0, 1024))).values
    np.testing.assert_array_equal(values[0, 4], plane.reshape(1024, 1024))
    assert not values[0, :4].any()
    assert not values[0, 5:].any()
    column = source.read((slice(600, 800), slice(3, 4), slice(5, 6))).values
    assert column[0, 100, 0, 0] == plane[3 * 1024 + 5]
    assert _status("VmHWM") - before < 120e6
    del values
    assert _status("VmRSS") - before < 40e6


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_file_that_is_cut_off_is_found_out_when_it_is_opened(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"v.{suffix}", random_voxels((30, 30, 30), seed=9))
    whole = path.read_bytes()
    for keep in (len(whole) - 1, len(whole) - 9, len(whole) // 2, 400, 200, 3, 0):
        path.write_bytes(whole[:keep])
        with pytest.raises(UnreadableSource, match="copy it again") as caught:
            open_nifti(path)
        assert "\n" not in str(caught.value)


def test_a_compressed_file_with_a_flipped_bit_is_found_out(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii.gz", random_voxels((30, 30, 30), seed=9))
    whole = bytearray(path.read_bytes())
    for at in (len(whole) // 2, len(whole) - 6):
        damaged = bytearray(whole)
        damaged[at] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(UnreadableSource, match="v.nii.gz cannot be read as NIfTI"):
            open_nifti(path)


def test_a_compressed_file_that_ends_before_its_voxels_is_found_out(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii.gz", random_voxels())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-6]))
    with pytest.raises(UnreadableSource, match=r"234 of 240 bytes of voxels are there; .* copy it again"):
        open_nifti(path)


def test_a_header_that_promises_too_much_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "v.nii.gz", random_voxels(), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    with pytest.raises(UnreadableSource, match="its header promises 54000000000352 compressed"):
        open_nifti(path)

    def full(*_: Any) -> Any:
        raise MemoryError

    save(path, random_voxels())
    monkeypatch.setattr("wsiseg.sources.volume.np.empty", full)
    with pytest.raises(SourceError, match=r"needs 0\.0 GB of memory .* uncompressed \.nii"):
        open_nifti(path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"magic": b"ni1"}, "it is a header whose voxels are in another file"),
        ({"magic": b"abc"}, "it does not begin with a NIfTI header"),
        ({"sizeof_hdr": 17}, "it does not begin with a NIfTI header"),
        ({"datatype": 4242}, "data code 4242 not recognized"),
        ({"vox_offset": 20}, "vox offset 20 too low for single file nifti1"),
        ({"scl_slope": np.inf}, "Valid slope but invalid intercept|inf"),
    ],
)
def test_headers_that_make_no_sense_are_refused_in_one_sentence(
    tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    if "scl_slope" in fields:
        fields = {"scl_slope": 2.0, "scl_inter": np.inf}
    with pytest.raises(UnreadableSource, match=says):
        open_nifti(save(tmp_path / "v.nii", random_voxels(), **fields))


@pytest.mark.parametrize(
    ("voxels", "fields", "says"),
    [
        (np.zeros((5, 6), np.int16), {}, r"has the shape \(5, 6\), a 2-D image"),
        (np.zeros((5, 6, 4, 2, 3), np.int16), {}, "extract one time point or one component"),
        (np.zeros(SHAPE, np.complex64), {}, "has complex64 voxels"),
        (np.zeros(SHAPE, [(c, "u1") for c in "RGB"]), {}, "has RGB voxels"),
        (np.zeros(SHAPE, np.int16), {"dim": [3, 5, 0, 4, 1, 1, 1, 1]}, "an axis of it has no voxels"),
    ],
)
def test_images_that_are_no_volumes_of_numbers_are_refused(
    tmp_path: Path, voxels: Voxels, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(SourceError, match=says):
        open_nifti(save(tmp_path / "v.nii", voxels, **fields))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSource, match=r"none\.nii"):
        open_nifti(tmp_path / "none.nii")
    assert open_volume(tmp_path / "none.nii") is None


def test_nan_and_infinity_are_refused_when_a_held_volume_is_opened_and_one_on_disk_is_read(
    tmp_path: Path,
) -> None:
    voxels = random_voxels(dtype=np.float32)
    voxels[4, 2, 1], voxels[0, 1, 3], voxels[2, 2, 1] = np.nan, np.inf, np.nan
    says = r"has 3 voxels that are NaN or infinite, the first at \(2, 2, 1\) \(i, j, k\)"
    with pytest.raises(SourceError, match=says):
        open_nifti(save(tmp_path / "v.nii.gz", voxels))
    source = open_nifti(save(tmp_path / "v.nii", voxels, affine_of((0, 2, 1), (-1, 1, 1))))
    with pytest.raises(SourceError, match=says):
        source.check()
    with pytest.raises(SourceError, match=r"has 1 voxels .* the first at \(0, 1, 3\)"):
        source.read((slice(1, 2), slice(3, 4), slice(0, 9)))
    clean = source.read((slice(1, 2), slice(3, 4), slice(0, 4))).values
    np.testing.assert_array_equal(clean[0, 0, 0], voxels[4:0:-1, 1, 3])
    open_nifti(save(tmp_path / "v.nii", random_voxels())).check()
    with pytest.raises(SourceError, match="has 120 voxels that are NaN or infinite"):  # beyond float32
        open_nifti(save(tmp_path / "v.nii.gz", np.full(SHAPE, 1e300)))


def test_a_file_on_disk_that_goes_away_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", random_voxels())
    source = open_nifti(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UnreadableSource, match=r"v\.nii cannot be read any more: it has become shorter"):
        values_of(source)
    path.unlink()
    with pytest.raises(UnreadableSource, match=r"v\.nii cannot be read any more: .*No such file"):
        values_of(source)


def test_channels_of_different_grids_make_no_volume(tmp_path: Path) -> None:
    one = open_nifti(save(tmp_path / "a.nii", random_voxels()))
    two = open_nifti(save(tmp_path / "b.nii", random_voxels((5, 6, 3))))
    with pytest.raises(ValueError, match="must have one grid"):
        VolumeSource([*one.channels, *two.channels], format="NIfTI")


# --- modalities


def test_modalities_are_found_by_their_names_of_any_year(tmp_path: Path) -> None:
    names = ("t1n", "t1c", "t2w", "t2f")
    for year, files in enumerate(
        (
            ("BraTS-GLI-1-000-t1n.nii.gz", "BraTS-GLI-1-000-t1c.nii.gz", "x-t2w.nii.gz", "x-t2f.nii.gz"),
            ("BraTS20_1_t1.nii.gz", "BraTS20_1_t1ce.nii.gz", "BraTS20_1_t2.nii", "BraTS20_1_flair.nii"),
            ("T1.nii.gz", "T1Gd.nii.gz", "T2.nii.gz", "FLAIR.nii.gz"),
        )
    ):
        folder = tmp_path / str(year)
        folder.mkdir()
        save(folder / "x_seg.nii.gz", random_voxels())
        for seed, file in enumerate(files):
            # The same canonical grid, stored in two directions.
            voxels, affine = random_voxels(seed=seed), affine_of()
            if seed == 1:
                affine[0, 3] += SPACING[0] * (SHAPE[0] - 1)
                affine[0, 0] *= -1
                voxels = voxels[::-1]
            save(folder / file, voxels, affine)
        source = open_volume(folder)
        assert source is not None
        assert source.channel_names == names
        for channel, values in enumerate(values_of(source)):
            np.testing.assert_array_equal(values, random_voxels(seed=channel).T)
        two = open_volume(folder, modalities=("flair", "t1n"))
        assert two is not None
        np.testing.assert_array_equal(values_of(two)[0], random_voxels(seed=3).T)
        given = open_modalities([folder / files[2], folder / files[0]], ("T2", "T1"))
        assert given.channel_names == ("T2", "T1")
        np.testing.assert_array_equal(values_of(given)[0], random_voxels(seed=2).T)


def test_modalities_of_two_types_are_read_in_one_that_holds_both(tmp_path: Path) -> None:
    kinds = {("uint8", "int16"): "int16", ("uint16", "int16"): "float32", ("int16", "float32"): "float32"}
    for (a, b), both in kinds.items():
        save(tmp_path / "t1.nii", random_voxels(dtype=a))
        save(tmp_path / "t2.nii", random_voxels(seed=1, dtype=b))
        source = open_modalities(tmp_path, ("t1", "t2"))
        assert source.dtype == np.dtype(both)
        np.testing.assert_array_equal(values_of(source)[0], random_voxels(dtype=a).T)
        np.testing.assert_array_equal(values_of(source)[1], random_voxels(seed=1, dtype=b).T)


def test_missing_ambiguous_and_unlike_modalities_are_named(tmp_path: Path) -> None:
    save(tmp_path / "c-t1n.nii", random_voxels())
    with pytest.raises(SourceError, match=r"has no t2f \(a file named t2f or flair.* files are: c-t1n\.nii"):
        open_modalities(tmp_path, ("t1n", "t2f"))
    save(tmp_path / "c-t2f.nii", random_voxels((5, 6, 3)))
    with pytest.raises(SourceError, match=r"c-t1n\.nii has \(4, 6, 5\) .*c-t2f\.nii \(3, 6, 5\)"):
        open_modalities(tmp_path, ("t1n", "t2f"))
    moved = affine_of()
    moved[2, 3] += 0.5
    save(tmp_path / "c-t2f.nii", random_voxels(), moved)
    with pytest.raises(SourceError, match=r"c-t1n\.nii and .*c-t2f\.nii lie at different places .* by 0\.5"):
        open_modalities(tmp_path, ("t1n", "t2f"))
    moved[2, 3] -= 0.4995
    save(tmp_path / "c-t2f.nii", random_voxels(), moved)
    assert open_modalities(tmp_path, ("t1n", "t2f")).num_channels == 2
    save(tmp_path / "c_flair.nii.gz", random_voxels())
    with pytest.raises(SourceError, match=r"several files for t2f: c-t2f\.nii and c_flair\.nii\.gz"):
        open_modalities(tmp_path, ("t1n", "t2f"))
    save(tmp_path / "c-t2w.nii", random_voxels((*SHAPE, 2)))
    with pytest.raises(SourceError, match=r"c-t2w\.nii has 2 channels; a modality is one"):
        open_modalities(tmp_path, ("t1n", "t2w"))
    with pytest.raises(ValueError, match="1 files for 2 modalities: t1n, t2w"):
        open_modalities([tmp_path / "c-t1n.nii"], ("t1n", "t2w"))
    with pytest.raises(UnreadableSource, match=r"c-t1n\.nii is not a folder"):
        open_modalities(tmp_path / "c-t1n.nii", ("t1n",))


def test_a_real_case_of_four_modalities_is_what_nibabel_reads(shared: Path) -> None:
    folder = shared / "data" / "brats-4modality"
    if not folder.is_dir():
        pytest.skip("needs data/brats-4modality")
    source = open_volume(folder)
    assert source is not None
    assert source.dtype == np.int16
    assert source.geometry.shape == (155, 240, 240)
    region = (slice(60, 90), slice(40, 200), slice(30, 180))
    values = source.read(region).values
    for name, channel in zip(("t1n", "t1c", "t2w", "t2f"), values, strict=True):
        np.testing.assert_array_equal(channel, canonical(folder / f"{name}.nii.gz")[region])


# --- DICOM


def write_series(
    folder: Path, stored: Voxels, affine: Any, *, uid: str = "1.2.3", **attributes: Any
) -> list[Path]:
    """One DICOM image per slice (columns, rows, slices), numbered in an order that means nothing."""
    folder.mkdir(exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    paths = []
    for k in range(stored.shape[2]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID(f"{uid}.{k + 1}")
        ds.SeriesInstanceUID, ds.Modality, ds.SeriesDescription = uid, "MR", "brain"
        ds.InstanceNumber = str((k * 7) % 11)
        ds.Columns, ds.Rows = stored.shape[:2]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        bits = stored.dtype.itemsize * 8
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
        ds.PixelRepresentation = int(stored.dtype.kind == "i")
        ds.ImageOrientationPatient = [f"{v:.10g}" for v in (lps[:3, :2] / sizes[:2]).T.ravel()]
        ds.ImagePositionPatient = [f"{v:.8g}" for v in lps[:3] @ (0, 0, k, 1)]
        ds.PixelSpacing = [float(sizes[1]), float(sizes[0])]
        ds.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        for name, value in attributes.items():
            setattr(ds, name, value)
        paths.append(folder / f"{uid}-{(k * 5) % 17:02d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def change(path: Path, **attributes: Any) -> None:
    ds = pydicom.dcmread(path)
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.save_as(path)


PLANES = {
    "axial": affine_of((0, 1, 2), (-1, -1, 1)),
    "axial from above": affine_of((0, 1, 2), (-1, -1, -1)),
    "coronal": affine_of((0, 2, 1), (-1, -1, 1)),
    "sagittal": affine_of((1, 2, 0), (-1, -1, -1)),
    "oblique": affine_of((0, 2, 1), (-1, -1, 1), turn=OBLIQUE),
}


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
    assert (source.format, source.channel_names, source.problems) == ("DICOM series", ("brain",), ())
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
    write_series(tmp_path / "s", second, affine_of(), uid="1.2.4", SeriesNumber="2", SeriesDescription="")
    listed = r"1: 1\.2\.9 \(brain, 4 slices\); 2: 1\.2\.4 \(no description, 3 slices\)"
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


def test_slides_and_pictures_are_no_volumes(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "slide", random_voxels(), affine_of()):
        change(path, SOPClassUID=SLIDE_CLASS)
    zarr = tmp_path / "image.zarr"
    zarr.mkdir()
    (zarr / "zarr.json").write_text("{}", encoding="utf-8")
    cases = tmp_path / "cases"
    cases.mkdir()
    save(cases / "one.nii", random_voxels())
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    for path in (tmp_path / "slide", next((tmp_path / "slide").iterdir()), zarr, cases, picture):
        assert open_volume(path) is None
    with pytest.raises(SourceError, match="has no t1n"):
        open_volume(cases, modalities=("t1n",))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(UnreadableSource, match="cannot be read: .*Permission denied"):
        open_volume(tmp_path)


# --- NRRD and MetaImage


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
    with pytest.raises(SourceError, match=r"has 1 voxels that are NaN or infinite, the first at \(1, 2, 3\)"):
        open_itk(tmp_path / "nan.nrrd")


def test_a_nrrd_without_space_is_told(tmp_path: Path) -> None:
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 1 3\nspacings: 1 2 3\nencoding: raw\n\n"
    (tmp_path / "v.nrrd").write_bytes(header + struct.pack("6B", *range(6)))
    source = open_itk(tmp_path / "v.nrrd")
    (problem,) = source.problems
    assert "does not state its orientation" in problem
    assert source.geometry.spacing == (3.0, 2.0, 1.0)
    np.testing.assert_array_equal(values_of(source)[0, :, 0], [[1, 0], [3, 2], [5, 4]])  # LPS
