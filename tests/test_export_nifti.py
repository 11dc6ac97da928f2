"""A mask written as NIfTI lies on its input's voxels, in whatever order and direction they are stored."""

from __future__ import annotations

import errno
import gzip
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import wsiseg.export.nifti
from wsiseg.classes import VOID
from wsiseg.errors import StoreError, UsageError
from wsiseg.export import write_nifti
from wsiseg.export.nifti import DESCRIPTION
from wsiseg.sources.native import Native, native_grid
from wsiseg.sources.nifti import open_nifti
from wsiseg.windows import Slab

ORIENTATIONS = [
    "".join(pair[choice] for pair, choice in zip(order, choices, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for choices in itertools.product((0, 1), repeat=3)
]
SHAPE = (5, 6, 7)
axcodes: Any = nib.aff2axcodes  # untyped
KEPT = [
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
]


def load(path: Path) -> Any:
    """A file as nibabel sees it."""
    return nib.load(path)


def apply_affine(affine: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Physical places (N, 3) of voxels (N, 3)."""
    return np.asarray(places @ affine[:3, :3].T + affine[:3, 3])


def indices(seed: int = 0, *, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """Class indices and void, another value in every voxel's neighbourhood."""
    values = np.array([0, 1, 2, 3, VOID], np.uint8)
    return np.asarray(values[np.random.default_rng(seed).integers(0, len(values), shape)])


def affine_of(codes: str, *, tilt: float = 0.1) -> NDArray[np.float64]:
    """Voxels of 0.7 x 1.1 x 2.5 mm with axes that run to `codes`, a little turned."""
    turned = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    axes = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        place = next(k for k, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        axes[place, axis] = 1 if code in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = turned @ axes @ np.diag([0.7, 1.1, 2.5])
    affine[:3, 3] = (-31.5, 17.25, 4.75)
    return affine


def stored(path: Path, codes: str, *, kind: Any = nib.Nifti1Image) -> NDArray[np.uint8]:
    """Write an input with everything that a header can say; its voxels (i, j, k)."""
    voxels = indices(len(codes))
    image = kind(voxels, affine_of(codes))
    image.header.set_qform(affine_of(codes), code=1)
    image.header.set_sform(affine_of(codes), code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"patient 4711"
    image.header["aux_file"] = b"ward 3"
    if kind is nib.Nifti1Image:
        image.header["db_name"] = b"name"
    image.header["cal_max"] = 3
    image.header.set_intent("estimate", name="patient 4711")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient 4711"))
    nib.save(image, path)
    return voxels


def canonical(path: Path) -> tuple[NDArray[Any], Native]:
    """Voxels (z, y, x) of a stored file, and its grid."""
    source = open_nifti(path)
    return source.read(source.geometry.whole).values[0], source.native


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_voxels_and_grid_are_those_of_the_input_in_every_orientation(
    codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two planes of the file at a time.
    monkeypatch.setattr("wsiseg.export.nifti._SLAB_BYTES", 2 * SHAPE[0] * SHAPE[1])
    original, out = tmp_path / "image.nii", tmp_path / "mask.nii"
    voxels = stored(original, codes)
    write_nifti(out, *canonical(original))
    given, written = load(original), load(out)
    assert axcodes(written.affine) == tuple(codes)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), voxels)
    np.testing.assert_array_equal(written.affine, given.affine)
    for form in ("get_sform", "get_qform"):
        matrix, code = getattr(written.header, form)(coded=True)
        expected, expected_code = getattr(given.header, form)(coded=True)
        np.testing.assert_array_equal(matrix, expected)
        assert code == expected_code
    for name in KEPT:
        np.testing.assert_array_equal(written.header[name], given.header[name], err_msg=name)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_a_voxel_lies_where_the_canonical_axes_say(codes: str, tmp_path: Path) -> None:
    native = native_grid(Path("image"), affine_of(codes, tilt=0.0), SHAPE)
    labels = np.zeros(native.geometry.shape, np.uint8)
    labels[-1, 0, -1] = 3  # most superior, most posterior, rightmost
    write_nifti(tmp_path / "mask.nii", labels, native)
    written = load(tmp_path / "mask.nii")
    places = apply_affine(written.affine, np.argwhere(np.ones(SHAPE)))
    (found,) = apply_affine(written.affine, np.argwhere(np.asanyarray(written.dataobj) == 3))
    np.testing.assert_allclose(found, [places[:, 0].max(), places[:, 1].min(), places[:, 2].max()], atol=1e-4)


def test_the_file_is_plain_uint8_and_says_what_it_is_for(tmp_path: Path) -> None:
    stored(tmp_path / "image.nii", "LPS")
    write_nifti(tmp_path / "mask.nii.gz", *canonical(tmp_path / "image.nii"))
    header = load(tmp_path / "mask.nii.gz").header
    assert header.get_data_dtype() == np.uint8
    raw = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert len(raw) == 352 + np.prod(SHAPE)
    # scl_slope and scl_inter as stored: nibabel takes them out of the header that it shows.
    assert np.frombuffer(raw[112:120], np.float32).tolist() == [1.0, 0.0]
    assert header.get_intent() == ("none", (), "")
    assert header["descrip"].item().decode() == DESCRIPTION
    assert "research use only, not for diagnosis" in DESCRIPTION
    assert len(DESCRIPTION) <= 80
    assert len(header.extensions) == 0
    assert not any(text in raw for text in (b"patient", b"4711", b"ward", b"name"))


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz", "MASK.NII.GZ"])
def test_both_kinds_of_file_hold_the_same_voxels(name: str, tmp_path: Path) -> None:
    voxels = stored(tmp_path / "image.nii", "PIR")
    out = tmp_path / "new" / name
    write_nifti(out, *canonical(tmp_path / "image.nii"))
    np.testing.assert_array_equal(np.asanyarray(load(out).dataobj), voxels)
    assert [p.name for p in out.parent.iterdir()] == [name]
    assert (out.read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith(".gz")


def test_a_nifti_2_input_gives_a_nifti_2_mask(tmp_path: Path) -> None:
    voxels = stored(tmp_path / "image.nii", "LAS", kind=nib.Nifti2Image)
    write_nifti(tmp_path / "mask.nii", *canonical(tmp_path / "image.nii"))
    written = load(tmp_path / "mask.nii")
    assert isinstance(written, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), voxels)
    np.testing.assert_array_equal(written.affine, affine_of("LAS"))


def test_a_grid_of_another_format_gets_both_forms_in_mm(tmp_path: Path) -> None:
    native = native_grid(Path("image.mha"), affine_of("PIR"), SHAPE)
    labels = indices(1, shape=native.geometry.shape)
    write_nifti(tmp_path / "mask.nii", labels, native)
    written = load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), native.to_native(labels))
    np.testing.assert_allclose(written.header.get_sform(coded=True)[0], affine_of("PIR"), atol=1e-5)
    np.testing.assert_allclose(written.header.get_qform(coded=True)[0], affine_of("PIR"), atol=1e-5)
    assert written.header.get_xyzt_units()[0] == "mm"


def test_labels_in_zarr_are_written_like_those_in_memory(tmp_path: Path) -> None:
    stored(tmp_path / "image.nii", "SAL")
    labels, native = canonical(tmp_path / "image.nii")
    write_nifti(tmp_path / "a.nii.gz", labels, native)
    write_nifti(tmp_path / "b.nii.gz", zarr.array(np.ascontiguousarray(labels), chunks=(2, 3, 4)), native)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("slab_bytes", [1, 2 * 5 * 6, 1000])
def test_the_size_of_slabs_does_not_matter(
    slab_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = stored(tmp_path / "image.nii", "IPR")
    monkeypatch.setattr(wsiseg.export.nifti, "_SLAB_BYTES", slab_bytes)
    write_nifti(tmp_path / "mask.nii", *canonical(tmp_path / "image.nii"))
    np.testing.assert_array_equal(np.asanyarray(load(tmp_path / "mask.nii").dataobj), voxels)


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_a_full_disk_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path / "image.nii", "LPS")
    labels, native = canonical(tmp_path / "image.nii")
    write_nifti(tmp_path / name, labels, native)
    before = (tmp_path / name).read_bytes()

    def full(height: int, *, rows: int) -> Iterator[Slab]:
        yield Slab(0, slice(0, height - 1))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(wsiseg.export.nifti, "slabs", full)
    with pytest.raises(StoreError, match=f"cannot write .*{name}: the disk is full"):
        write_nifti(tmp_path / name, np.zeros_like(labels), native)
    assert (tmp_path / name).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.nii", name]


def test_what_does_not_fit_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    native = native_grid(Path("image"), affine_of("PIR"), SHAPE)
    labels = np.zeros(native.geometry.shape, np.uint8)
    with pytest.raises(UsageError, match="the name of a NIfTI file ends in .nii or .nii.gz"):
        write_nifti(tmp_path / "mask.gz", labels, native)
    with pytest.raises(ValueError, match="labels have int16 values; class indices are uint8"):
        write_nifti(tmp_path / "mask.nii", labels.astype(np.int16), native)
    with pytest.raises(ValueError, match=r"voxels of shape .* do not fit the volume's"):
        write_nifti(tmp_path / "mask.nii", labels[1:], native)
    assert list(tmp_path.iterdir()) == []
