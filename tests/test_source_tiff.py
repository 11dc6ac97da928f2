"""TIFFs and OME-TIFFs are read level by level, with what is broken in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

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


@pytest.mark.parametrize("channels", [3, 4])
def test_untiled_tiffs_of_rgb_and_rgba_are_read(tmp_path: Path, channels: int) -> None:
    image = random_image((40, 53), channels=channels, seed=9)
    path = tmp_path / "slide.tiff"
    data = rgb_last(image)
    tifffile.imwrite(path, data, photometric="rgb", rowsperstrip=7, metadata=None)
    expected = np.moveaxis(to_rgb_uint8(data, name="x"), -1, 0)
    for region in around((40, 53)):
        assert_reads(open_source(path, mpp=0.5), expected, region)


@pytest.mark.parametrize("compression", ["none", "zlib", "jpeg"])
def test_separate_planes_are_read_as_one_picture(tmp_path: Path, compression: str) -> None:
    image = random_image((150, 212), seed=12)
    path = tmp_path / "slide.tif"
    planes: dict[str, Any] = {
        "photometric": "rgb",
        "planarconfig": "separate",
        "tile": (32, 48),
        "compression": compression,
    }
    with tifffile.TiffWriter(path, ome=True) as writer:
        metadata = {"axes": "SYX", "PhysicalSizeY": 0.4, "PhysicalSizeX": 0.25}
        writer.write(image, subifds=1, metadata=metadata, **planes)
        writer.write(image[:, ::2, ::2], subfiletype=1, **planes)
    source = open_source(path)
    if compression == "jpeg":
        image = np.asarray(tifffile.imread(path, level=0))
        assert np.abs(image.astype(int) - random_image((150, 212), seed=12)).mean() < 4
    for region in around((150, 212)):
        assert_reads(source, image, region)
    assert [s.geometry.shape for s in source.levels] == [(150, 212), (75, 106)]
    assert source.geometry.spacing == (0.4, 0.25)


def test_a_broken_tile_of_one_plane_is_not_valid(tmp_path: Path) -> None:
    image = random_image((150, 212), seed=13)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path,
        image,
        photometric="rgb",
        planarconfig="separate",
        tile=(32, 48),
        compression="zlib",
        metadata=None,
    )
    spoil(path, page=0, tile=25 + 2 * 5 + 3)  # of the green plane
    pixels = open_source(path, mpp=0.5).read((slice(0, 150), slice(0, 212)))
    valid = spoilt_map((150, 212), (slice(64, 96), slice(144, 192)), (slice(0, 150), slice(0, 212)))
    np.testing.assert_array_equal(pixels.valid, valid)
    np.testing.assert_array_equal(pixels.values, np.where(valid, image, 255))


def test_jpeg_tiles_in_ycbcr_come_out_as_rgb(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:96, :144]
    rgb = np.stack([2 * rows, 255 - columns, 60 + rows // 2], axis=-1).astype(np.uint8)  # no grey in it
    path = tmp_path / "slide.tif"
    # The writer takes components as they will be stored.
    stored = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    options: dict[str, Any] = {
        "photometric": "ycbcr",
        "compression": "jpeg",
        "compressionargs": {"level": 95},
    }
    tifffile.imwrite(path, stored, tile=(32, 48), subsampling=(2, 2), metadata=None, **options)
    read = open_source(path, mpp=0.5).read((slice(0, 96), slice(0, 144))).values
    difference = np.abs(rgb_last(read).astype(int) - rgb)
    assert difference.mean() < 2
    assert difference.max() < 12


def test_the_largest_picture_of_a_file_is_the_slide(tmp_path: Path) -> None:
    image = random_image((150, 212), seed=14)
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        label = {"axes": "YXS", "Name": "label", "PhysicalSizeX": 9.0, "PhysicalSizeY": 9.0}
        writer.write(np.zeros((40, 50, 3), np.uint8), photometric="rgb", metadata=label)
        slide = {"axes": "YXS", "Name": "slide", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.4}
        writer.write(rgb_last(image), photometric="rgb", tile=(32, 48), subifds=1, metadata=slide)
        writer.write(rgb_last(image[:, ::2, ::2]), photometric="rgb", tile=(32, 48), subfiletype=1)
        writer.write(np.zeros((90, 40, 3), np.uint8), photometric="rgb", metadata={"Name": "macro"})
    source = open_source(path)
    assert source.geometry.spacing == (0.4, 0.25)
    assert [s.geometry.shape for s in source.levels] == [(150, 212), (75, 106)]
    for level, expected in zip(source.levels, (image, image[:, ::2, ::2]), strict=True):
        for region in around(expected.shape[1:]):
            assert_reads(level, expected, region)


def test_tiles_that_a_tiff_leaves_out_are_glass(tmp_path: Path) -> None:
    image = random_image((96, 144), seed=15)
    image[:, 32:64, 48:96] = 255
    tiles = {(r, c): image[:, 32 * r : 32 * r + 32, 48 * c : 48 * c + 48] for r in range(3) for c in range(3)}
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            (None if place == (1, 1) else rgb_last(tile) for place, tile in tiles.items()),
            shape=(96, 144, 3), dtype=np.uint8, photometric="rgb", tile=(32, 48), metadata=None,
        )  # fmt: skip
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].dataoffsets[4] == 0
    assert_reads(open_source(path, mpp=0.5), image, (slice(0, 96), slice(0, 144)))


def test_what_a_truncated_tiff_has_lost_is_not_valid(tmp_path: Path) -> None:
    image = random_image((96, 144), seed=16)
    path = tmp_path / "slide.tif"
    options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 48), "compression": "zlib"}
    tifffile.imwrite(path, rgb_last(image), metadata=None, **options)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].offset < file.pages[0].dataoffsets[0]
        end = file.pages[0].dataoffsets[6] + 5
    with path.open("r+b") as stream:
        stream.truncate(end)
    pixels = open_source(path, mpp=0.5).read((slice(0, 96), slice(0, 144)))
    valid = np.ones((96, 144), bool)
    valid[64:] = False
    np.testing.assert_array_equal(pixels.valid, valid)
    np.testing.assert_array_equal(pixels.values, np.where(valid, image, 255))


def test_an_ome_tiff_with_broken_metadata_states_no_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.tif"
    image = random_image((40, 56), seed=1)
    write_ome(path, image, PhysicalSizeX=0.25, PhysicalSizeY=0.25)
    content = path.read_bytes()
    assert content.count(b"<Pixels ") == 1
    path.write_bytes(content.replace(b"<Pixels ", b"<Pixels<"))
    with pytest.raises(MissingSpacing, match="does not state its pixel size"):
        open_source(path)
    assert_reads(open_source(path, mpp=0.5), image, (slice(0, 40), slice(0, 56)))


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
