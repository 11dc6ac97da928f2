"""NIfTI files are read in parts or held, and refused in one clear sentence."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.volume_files import (
    OBLIQUE,
    SHAPE,
    Voxels,
    affine_of,
    canonical,
    random_voxels,
    save,
    values_of,
)
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.nifti import open_nifti
from wsiseg.sources.volume import VolumeSource
from wsiseg.sources.volumes import open_volume


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
    says = r"has voxels that are NaN or infinite \(3 of them, the first at \(i, j, k\) = \(2, 2, 1\)\)"
    with pytest.raises(SourceError, match=says):
        open_nifti(save(tmp_path / "v.nii.gz", voxels))
    source = open_nifti(save(tmp_path / "v.nii", voxels, affine_of((0, 2, 1), (-1, 1, 1))))
    with pytest.raises(SourceError, match=says):
        source.check()
    with pytest.raises(SourceError, match=r"1 of them, the first at \(i, j, k\) = \(0, 1, 3\)"):
        source.read((slice(1, 2), slice(3, 4), slice(0, 9)))
    clean = source.read((slice(1, 2), slice(3, 4), slice(0, 4))).values
    np.testing.assert_array_equal(clean[0, 0, 0], voxels[4:0:-1, 1, 3])
    open_nifti(save(tmp_path / "v.nii", random_voxels())).check()
    with pytest.raises(SourceError, match=r"NaN or infinite \(120 of them"):  # beyond float32
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
