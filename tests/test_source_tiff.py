"""TIFFs and OME-TIFFs are read level by level, with what is broken in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.conftest import random_image
from tests.images import (
    Rgb,
    around,
    assert_reads,
    padded,
    read_many,
    rgb_last,
    spoil,
    spoilt_map,
    write_reduced_pages,
)
from wsiseg.errors import MissingSpacing, SourceError
from wsiseg.sources import open_source
from wsiseg.sources.base import to_rgb_uint8


def write_ome(path: Path, image: Rgb, **metadata: Any) -> list[Rgb]:
    """An OME-TIFF whose coarser levels are sub-IFDs."""
    levels = [image, image[:, ::2, ::2], image[:, ::4, ::4]]
    with tifffile.TiffWriter(path, ome=True) as writer:
        for n, level in enumerate(levels):
            writer.write(
                rgb_last(level),
                tile=(32, 48),
                photometric="rgb",
                compression="zlib",
                **({"subfiletype": 1} if n else {"subifds": 2, "metadata": {"axes": "YXS", **metadata}}),
            )
    return levels


@pytest.mark.parametrize("kind", ["reduced", "ome"])
def test_a_pyramid_in_a_tiff_is_read_level_by_level(tmp_path: Path, kind: str) -> None:
    image = random_image((150, 212), seed=8)
    if kind == "reduced":
        path = tmp_path / "slide.tif"
        levels = write_reduced_pages(path, image)
    else:
        path = tmp_path / "slide.ome.tif"
        sizes = {"PhysicalSizeY": 0.4, "PhysicalSizeX": 250.0}
        units = {"PhysicalSizeYUnit": "µm", "PhysicalSizeXUnit": "nm"}
        levels = write_ome(path, image, **sizes, **units)
    source = open_source(path)
    assert source.format == "TIFF"
    assert len(source.levels) == len(levels)
    for level, expected in zip(source.levels, levels, strict=True):
        assert level.geometry.shape == expected.shape[1:]
        extent = (150 * 0.4, 212 * 0.25)
        np.testing.assert_allclose(level.geometry.extent, extent, rtol=1e-6)
        for region in around(expected.shape[1:]):
            assert_reads(level, expected, region)
    assert [x.geometry for x in source.levels[1].levels] == [x.geometry for x in source.levels[1:]]
    np.testing.assert_allclose(open_source(path, mpp=0.7).geometry.spacing, (0.7, 0.7), rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_untiled_tiffs_of_grey_rgb_and_rgba_are_read(tmp_path: Path, channels: int) -> None:
    image = random_image((40, 53), channels=channels, seed=9)
    path = tmp_path / "slide.tiff"
    kind = "minisblack" if channels == 1 else "rgb"
    data = image[0] if channels == 1 else rgb_last(image)
    tifffile.imwrite(path, data, photometric=kind, rowsperstrip=7, metadata=None)
    expected = np.moveaxis(to_rgb_uint8(data, name="x"), -1, 0)
    for region in around((40, 53)):
        assert_reads(open_source(path, mpp=0.5), expected, region)


def test_a_tiff_of_more_channels_than_a_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, np.zeros((40, 53, 5), np.uint8), photometric="minisblack", planarconfig="contig", metadata=None
    )
    with pytest.raises(SourceError, match="5 channels"):
        open_source(path, mpp=0.5)


def test_tiffs_that_are_not_one_picture_of_8_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.zeros((16, 20, 3), np.uint16), photometric="rgb")
    with pytest.raises(SourceError, match=r"slide\.tif has uint16 pixels; 8 bits a channel"):
        open_source(path, mpp=0.5)
    tifffile.imwrite(path, np.zeros((5, 16, 20), np.uint8), photometric="minisblack")
    with pytest.raises(SourceError, match=r"is a stack of shape \(5, 16, 20\) .*; one picture is supported"):
        open_source(path, mpp=0.5)
    tifffile.imwrite(path, np.zeros((3, 16, 20), np.uint8), photometric="rgb", planarconfig="separate")
    with pytest.raises(SourceError, match="has axes SYX; one picture of axes YX or YXS is supported"):
        open_source(path, mpp=0.5)


@pytest.mark.parametrize(
    ("resolution", "unit", "spacing"),
    [
        ((40_000, 25_000), "CENTIMETER", (0.4, 0.25)),
        ((101_600, 50_800), "INCH", (0.5, 0.25)),
        ((300, 300), "INCH", None),  # a printer's
        ((40_000, 25_000), "NONE", None),
        ((0, 0), "CENTIMETER", None),
    ],
)
def test_resolution_tags_state_the_pixel_size_unless_they_are_a_screens(
    tmp_path: Path,
    resolution: tuple[int, int],
    unit: str,
    spacing: tuple[float, float] | None,
) -> None:
    path = tmp_path / "slide.tif"
    data = np.zeros((16, 20, 3), np.uint8)
    tifffile.imwrite(path, data, photometric="rgb", resolution=resolution, resolutionunit=unit, metadata=None)
    if spacing is None:
        with pytest.raises(MissingSpacing, match="does not state its pixel size"):
            open_source(path)
    else:
        np.testing.assert_allclose(open_source(path).geometry.spacing, spacing)


@pytest.mark.parametrize(
    "metadata",
    [{}, {"PhysicalSizeX": 0.25}, {"PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeYUnit": "pixel"}],
)
def test_an_ome_tiff_without_a_whole_pixel_size_is_refused(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = tmp_path / "slide.ome.tif"
    write_ome(path, random_image((40, 56), seed=1), **metadata)
    with pytest.raises(MissingSpacing, match="does not state its pixel size"):
        open_source(path)


def test_an_ome_tiff_whose_pixel_size_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.tif"
    write_ome(path, random_image((40, 56), seed=1), PhysicalSizeX=0.25, PhysicalSizeY=0.25)
    content = path.read_bytes()
    assert content.count(b'PhysicalSizeX="0.25"') == 1
    path.write_bytes(content.replace(b'PhysicalSizeX="0.25"', b'PhysicalSizeX="?.??"'))
    with pytest.raises(SourceError, match=r"slide\.ome\.tif"):
        open_source(path)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_broken_tile_of_a_tiff_is_not_valid_and_the_rest_is_read(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "slide.tif"
    write_reduced_pages(path, random_image((150, 212), seed=10), compression="jpeg")
    # The first level's tiles, 32 by 48, lie in 5 rows of 5.
    before = open_source(path).read((slice(0, 150), slice(0, 212))).values.copy()
    spoil(path, page=0, tile=2 * 5 + 3)
    spoilt = (slice(64, 96), slice(144, 192))
    source = open_source(path)
    regions = [
        *around((150, 212)),
        spoilt,
        (slice(95, 110), slice(100, 191)),
        (slice(40, 65), slice(143, 145)),
        (slice(0, 64), slice(0, 212)),
    ]
    for region, pixels in zip(regions, read_many(source, regions, threads=threads), strict=True):
        valid = spoilt_map((150, 212), spoilt, region)
        np.testing.assert_array_equal(pixels.valid, valid)
        np.testing.assert_array_equal(pixels.values, np.where(valid, padded(before, region), 255))
    assert source.levels[1].read((slice(0, 75), slice(0, 106))).all_valid
