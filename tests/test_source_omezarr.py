"""OME-Zarr is read level by level, or one clear sentence says why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.conftest import random_image
from tests.images import Rgb, around, assert_reads
from wsiseg.errors import MissingSpacing, SourceError, UnreadableSource
from wsiseg.files import remove_tree
from wsiseg.geometry import Geometry
from wsiseg.ngff import image_metadata
from wsiseg.sources import open_source
from wsiseg.sources.omezarr import open_multiscale


def write_zarr(
    path: Path,
    levels: Sequence[Rgb],
    *,
    axes: str = "yx",
    spacing: Sequence[float] = (0.5, 0.25),
    unit: str = "micrometer",
    channels: bool = True,
) -> Path:
    group = zarr.open_group(path, mode="w")
    names = [str(n) for n in range(len(levels))]
    group.attrs["ome"] = image_metadata(
        name="slide", paths=names, axes=axes, spacing=spacing, unit=unit, channels=channels
    )
    for name, level in zip(names, levels, strict=True):
        group.create_array(
            name, data=level, chunks=tuple(min(16 + 3 * k, n) for k, n in enumerate(level.shape))
        )
    return path


def change_ome(path: Path, **changes: Any) -> None:
    """Rewrite parts of the first multiscale's metadata."""
    group = zarr.open_group(path, mode="r+")
    ome = json.loads(json.dumps(group.attrs["ome"]))
    ome["multiscales"][0].update(changes)
    group.attrs["ome"] = ome


def test_an_ome_zarr_is_read_level_by_level(tmp_path: Path) -> None:
    image = random_image((60, 88), seed=12)
    levels = [image, image[:, ::2, ::2], image[:, ::4, ::4]]
    path = write_zarr(tmp_path / "slide.zarr", levels)
    source = open_source(path)
    assert source.format == "OME-Zarr"
    for n, (level, expected) in enumerate(zip(source.levels, levels, strict=True)):
        assert level.geometry.spacing == (0.5 * 2**n, 0.25 * 2**n)
        assert level.geometry.shape == expected.shape[1:]
        for region in around(expected.shape[1:]):
            assert_reads(level, expected, region)
    assert [s.geometry.spacing for s in open_source(path, mpp=0.3).levels] == [
        (0.3,) * 2,
        (0.6,) * 2,
        (1.2,) * 2,
    ]


def test_a_volume_without_channels_has_one(tmp_path: Path) -> None:
    volume = random_image((5, 9, 14), channels=1, seed=13)
    spacing = (2.0, 0.5, 0.25)
    path = write_zarr(
        tmp_path / "v", [volume[0]], axes="zyx", spacing=spacing, unit="millimeter", channels=False
    )
    source = open_multiscale(path)
    assert source.geometry == Geometry(axes="zyx", shape=(5, 9, 14), spacing=spacing, unit="millimeter")
    for region in around((5, 9, 14)):
        assert_reads(source, volume, region)
    assert open_source(path).num_channels == 1


def test_nanometres_become_micrometres(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s", [random_image((8, 9))], spacing=(500.0, 250.0), unit="nanometer")
    np.testing.assert_allclose(open_source(path).geometry.spacing, (0.5, 0.25))
    assert open_source(path).geometry.unit == "micrometer"


def test_version_0_4_with_its_metadata_beside_is_read(tmp_path: Path) -> None:
    image = random_image((20, 31), seed=14)
    group = zarr.open_group(tmp_path / "s", mode="w", zarr_format=2)
    meta = image_metadata(
        name="s", paths=["0"], axes="yx", spacing=(0.5, 0.25), unit="micrometer", channels=True
    )
    group.attrs["multiscales"] = meta["multiscales"]
    group.create_array("0", data=image, chunks=(3, 8, 16))
    source = open_source(tmp_path / "s")
    assert source.geometry.spacing == (0.5, 0.25)
    assert_reads(source, image, (slice(-2, 20), slice(3, 40)))


def test_an_ome_zarr_without_a_known_unit_is_refused_unless_told(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s", [random_image((8, 9))])
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space"} for a in "yx")]
    change_ome(path, axes=axes)
    with pytest.raises(MissingSpacing, match="does not state its pixel size in a known unit"):
        open_source(path)
    assert open_source(path, mpp=0.5).geometry.spacing == (0.5, 0.5)


def test_axes_and_pixels_that_are_not_supported_are_refused(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s", [random_image((8, 9))])
    change_ome(path, axes=[{"name": a} for a in "txy"])
    with pytest.raises(SourceError, match="has axes 'txy'; yx and zyx, with or without c before"):
        open_source(path)
    path = write_zarr(tmp_path / "t", [random_image((8, 9)).astype(np.uint16)])
    with pytest.raises(SourceError, match="level '0': an array of uint16 values; uint8 are supported"):
        open_source(path)
    group = zarr.open_group(path, mode="r+")
    del group["0"]
    group.create_group("0")
    with pytest.raises(SourceError, match="level '0': an array of no values"):
        open_source(path)


def test_folders_that_are_no_ome_zarr_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(
        UnreadableSource,
        match="is a folder without an OME-Zarr image, a DICOM slide or series, or the modalities",
    ):
        open_source(tmp_path)
    zarr.open_group(tmp_path / "plain", mode="w")
    with pytest.raises(UnreadableSource, match="is a zarr group without OME multiscales metadata"):
        open_source(tmp_path / "plain")
    zarr.create_array(tmp_path / "array", data=np.zeros(3, np.uint8))
    with pytest.raises(UnreadableSource, match="array cannot be opened as OME-Zarr"):
        open_source(tmp_path / "array")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text("{")
    with pytest.raises(UnreadableSource, match="broken cannot be opened as OME-Zarr"):
        open_source(tmp_path / "broken")


@pytest.mark.parametrize(
    "changes",
    [
        {"datasets": []},
        {"datasets": [{"path": "7", "coordinateTransformations": []}]},
        {
            "datasets": [
                {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.0, 0.5]}]}
            ]
        },
        {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5]}]}]},
        {"axes": ["c", "y", "x"]},
        {"axes": 3},
    ],
)
def test_metadata_that_make_no_sense_are_the_files_fault(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_zarr(tmp_path / "s", [random_image((8, 9))])
    change_ome(path, **changes)
    with pytest.raises(SourceError):  # what is said depends on the mistake
        open_source(path)


def test_a_level_or_an_entry_that_is_missing_is_named(tmp_path: Path) -> None:
    image = random_image((40, 40), seed=1)
    path = write_zarr(tmp_path / "slide.zarr", [image, image[:, ::2, ::2]])
    remove_tree(path / "1")
    with pytest.raises(UnreadableSource, match="has no level '1', which its metadata name; copy all of it"):
        open_source(path)
    change_ome(path, datasets=[{}])
    with pytest.raises(UnreadableSource, match="has multiscales metadata without 'path'"):
        open_source(path)


def test_an_empty_list_of_multiscales_is_the_files_fault(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "s", mode="w")
    group.attrs["ome"] = {"version": "0.5", "multiscales": []}
    with pytest.raises(SourceError, match="multiscales"):
        open_source(tmp_path / "s")
