"""The modalities of a case become the channels of one volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.volume_files import (
    SHAPE,
    SPACING,
    affine_of,
    canonical,
    random_voxels,
    save,
    values_of,
)
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.nifti import open_modalities
from wsiseg.sources.volumes import open_volume


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
