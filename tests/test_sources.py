"""Images of every format give the same pixels, whatever is asked for and whatever is broken."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import SLIDE, array_source, random_image
from wsiseg.errors import MissingSpacing, SourceError, UnreadableSource
from wsiseg.geometry import Geometry, Region, region_shape
from wsiseg.ngff import image_metadata
from wsiseg.resample import mix, taps
from wsiseg.sources import Source, open_source
from wsiseg.sources.array import ArraySource
from wsiseg.sources.base import Pixels, to_rgb_uint8
from wsiseg.sources.cached import CachedSource
from wsiseg.sources.omezarr import open_multiscale
from wsiseg.sources.resampled import ResampledSource, at_level, choose_level

BROKEN = Path(__file__).parents[2] / "shared" / "data" / "wsi-formats" / "broken.svs"
Rgb = NDArray[np.uint8]


def padded(image: Rgb, region: Region, *, outside: int = 255) -> Rgb:
    """The region of an image (C, *axes), white outside unless another value is given."""
    out = np.full((image.shape[0], *region_shape(region)), outside, image.dtype)
    places = [np.arange(s.start, s.stop) for s in region]
    inside = [np.flatnonzero((i >= 0) & (i < n)) for i, n in zip(places, image.shape[1:], strict=True)]
    channels = np.arange(image.shape[0])
    picked = image[np.ix_(channels, *(i[k] for i, k in zip(places, inside, strict=True)))]
    out[np.ix_(channels, *inside)] = picked
    return out


def assert_reads(
    source: Source, image: Rgb, region: Region, *, valid: NDArray[np.bool_] | None = None
) -> None:
    """The region holds the image's pixels, background outside; all valid unless another map is given."""
    pixels = source.read(region)
    np.testing.assert_array_equal(pixels.values, padded(image, region, outside=source.outside))
    assert pixels.values.dtype == np.uint8
    expected = np.ones(region_shape(region), bool) if valid is None else valid
    np.testing.assert_array_equal(pixels.valid, expected)
    assert pixels.all_valid == expected.all()


def around(shape: Sequence[int]) -> list[Region]:
    """Regions inside, over each border, round everything, and wholly outside of an image."""
    whole = tuple(slice(0, n) for n in shape)
    return [
        whole,
        tuple(slice(n // 3, n // 3 + 1 + k) for k, n in enumerate(shape)),
        tuple(slice(-3 - k, n // 2) for k, n in enumerate(shape)),
        tuple(slice(n // 2, n + 4 + k) for k, n in enumerate(shape)),
        tuple(slice(-2, n + 5) for n in shape),
        tuple(slice(n + 3, n + 7 + k) for k, n in enumerate(shape)),
        tuple(slice(-9, -4 - k) for k, _ in enumerate(shape)),
        (slice(2, 2), *whole[1:]),
    ]


def rgb_last(image: Rgb) -> Rgb:
    return np.ascontiguousarray(np.moveaxis(image, 0, -1))


# --- arrays


@pytest.mark.parametrize("shape", [(23,), (9, 14), (4, 7, 6), (3, 4, 5, 2)])
def test_an_array_reads_as_itself_and_white_outside_in_1_to_4_dimensions(shape: tuple[int, ...]) -> None:
    image = random_image(shape, channels=2, seed=1)
    source = array_source(image)
    for region in around(shape):
        assert_reads(source, image, region)
    assert source.levels == (source,)
    assert source.num_channels == 2


def test_what_is_not_valid_in_an_array_stays_so_and_outside_is_valid() -> None:
    image = random_image((9, 14), seed=2)
    bad = np.ones((9, 14), bool)
    bad[3, 4] = False
    source = array_source(image, valid=bad)
    region = (slice(-2, 6), slice(2, 20))
    expected = np.ones(region_shape(region), bool)
    expected[5, 2] = False
    assert_reads(source, image, region, valid=expected)
    assert source.read((slice(4, 9), slice(0, 14))).all_valid


def test_an_array_that_does_not_fit_its_geometry_is_refused() -> None:
    geometry = Geometry(axes="yx", shape=(4, 6), spacing=(0.5, 0.25), unit="micrometer")
    for shape in ((4, 6), (3, 6, 4), (3, 4, 6, 1), ()):
        with pytest.raises(ValueError, match=r"does not fit \(C, \*\(4, 6\)\)"):
            ArraySource(np.zeros(shape, np.uint8), geometry)
    with pytest.raises(ValueError, match="pixels must be uint8, got uint16"):
        ArraySource(np.zeros((3, 4, 6), np.uint16), geometry)


# --- pictures


@pytest.mark.parametrize("suffix", ["png", "bmp", "PNG"])
def test_a_picture_reads_as_its_pixels(tmp_path: Path, suffix: str) -> None:
    image = random_image((21, 34), seed=3)
    path = tmp_path / f"slide.{suffix}"
    Image.fromarray(rgb_last(image)).save(path)
    source = open_source(path, mpp=0.5)
    assert source.geometry == Geometry(axes="yx", shape=(21, 34), spacing=(0.5, 0.5), unit="micrometer")
    assert source.format == suffix.upper()
    for region in around((21, 34)):
        assert_reads(source, image, region)


def test_a_jpeg_reads_as_pillow_decodes_it(tmp_path: Path) -> None:
    path = tmp_path / "slide.jpg"
    Image.fromarray(rgb_last(random_image((21, 34), seed=4))).save(path, quality=70)
    with Image.open(path) as picture:
        decoded = np.moveaxis(np.asarray(picture), -1, 0)
    assert_reads(open_source(path, mpp=0.5), decoded, (slice(-3, 30), slice(5, 40)))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = random_image((21, 34), seed=5)
    alpha = random_image((21, 34), channels=1, seed=6)
    alpha[0, 0, 0], alpha[0, 0, 1] = 0, 255
    path = tmp_path / "slide.png"
    Image.fromarray(rgb_last(np.concatenate([image, alpha]))).save(path)
    share = alpha / 255.0
    expected = np.rint(image * share + 255 * (1 - share)).astype(np.uint8)
    read = open_source(path, mpp=0.5).read((slice(0, 21), slice(0, 34)))
    np.testing.assert_array_equal(read.values, expected)
    assert read.all_valid
    np.testing.assert_array_equal(read.values[:, 0, 0], 255)
    np.testing.assert_array_equal(read.values[:, 0, 1], image[:, 0, 1])


def test_grey_with_and_without_alpha_becomes_rgb() -> None:
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    np.testing.assert_array_equal(to_rgb_uint8(grey, name="g"), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(
        to_rgb_uint8(grey[..., None], name="g"), np.repeat(grey[..., None], 3, axis=2)
    )
    with_alpha = np.stack([grey, np.array([[255, 0], [51, 128]], np.uint8)], axis=2)
    mixed = np.array([[0, 255], [244, 255]], np.uint8)
    np.testing.assert_array_equal(to_rgb_uint8(with_alpha, name="g"), np.repeat(mixed[..., None], 3, axis=2))


def test_pixels_that_are_no_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="slide has uint16 pixels; 8 bits a channel"):
        to_rgb_uint8(np.zeros((2, 2, 3), np.uint16), name="slide")
    with pytest.raises(ValueError, match="slide has 5 channels; grey, RGB and RGBA"):
        to_rgb_uint8(np.zeros((2, 2, 5), np.uint8), name="slide")


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_picture_is_read_in_its_colours(tmp_path: Path, transparent: bool) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    colors = np.array([[200, 10, 20], [30, 150, 40], [50, 60, 250]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette(colors.ravel().tolist())
    path = tmp_path / "slide.png"
    if transparent:
        picture.info["transparency"] = 1
    picture.save(path)
    expected = colors[indices]
    if transparent:
        expected[indices == 1] = 255
    assert_reads(open_source(path, mpp=0.5), np.moveaxis(expected, -1, 0), (slice(0, 2), slice(0, 3)))


def test_a_cmyk_picture_is_not_taken_for_a_transparent_one(tmp_path: Path) -> None:
    path = tmp_path / "slide.jpg"
    Image.new("CMYK", (16, 24), (0, 200, 0, 0)).save(path, quality=100)
    with Image.open(path) as picture:
        expected = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
    assert_reads(open_source(path, mpp=0.5), expected, (slice(0, 24), slice(0, 16)))


def test_a_picture_of_other_than_8_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.png"
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(path)
    with pytest.raises(SourceError, match=r"slide\.png has uint16 pixels"):
        open_source(path, mpp=0.5)


def test_a_picture_of_more_than_a_gigapixel_is_refused_with_advice(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "slide.png"
    header = struct.pack(">IIBBBBB", 40_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(SourceError, match="convert it to a tiled TIFF"):
        open_source(path, mpp=0.5)


@pytest.mark.parametrize("keep", [0, 20, 300])
def test_a_picture_that_is_cut_off_is_unreadable(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "slide.png"
    Image.fromarray(rgb_last(random_image((40, 50), seed=7))).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableSource, match=r"slide\.png cannot be read as an image"):
        open_source(path, mpp=0.5)


def test_a_picture_without_a_pixel_size_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "slide.png"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
    with pytest.raises(MissingSpacing, match=r"slide\.png does not state its pixel size; .*--mpp 0\.25"):
        open_source(path)


def test_missing_and_unknown_files_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSource, match=r"no such file: .*none\.svs"):
        open_source(tmp_path / "none.svs")
    for name in ("notes.txt", "fake.svs", "fake.ndpi"):
        (tmp_path / name).write_text("not a slide\n" * 100)
        with pytest.raises(UnreadableSource, match=f"{name} is not an image that can be read: OpenSlide"):
            open_source(tmp_path / name, mpp=0.5)
    (tmp_path / "fake.tif").write_text("not a slide\n" * 100)
    with pytest.raises(UnreadableSource, match=r"fake\.tif cannot be opened as a TIFF"):
        open_source(tmp_path / "fake.tif", mpp=0.5)


# --- TIFF


def write_reduced_pages(path: Path, image: Rgb, **options: Any) -> list[Rgb]:
    """A pyramid of top-level reduced pages, 0.4 µm by 0.25 µm, and a reduced page that is a label."""
    levels = [image, image[:, ::2, ::2], image[:, ::4, ::4]]
    with tifffile.TiffWriter(path) as writer:
        for n, level in enumerate(levels):
            writer.write(
                rgb_last(level),
                tile=(32, 48),
                photometric="rgb",
                resolution=(1e4 / 0.25 / 2**n, 1e4 / 0.4 / 2**n),
                resolutionunit="CENTIMETER",
                subfiletype=1 if n else 0,
                metadata=None,
                **options,
            )
        writer.write(np.zeros((64, 24, 3), np.uint8), photometric="rgb", subfiletype=1, metadata=None)
    return levels


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


def spoil(path: Path, *, page: int, tile: int) -> None:
    """Overwrite one stored tile, so that it is no JPEG any more."""
    with tifffile.TiffFile(path) as file:
        where = file.pages[page].dataoffsets[tile]
        length = file.pages[page].databytecounts[tile]
    with path.open("r+b") as stream:
        stream.seek(where)
        stream.write(bytes(length))


def spoilt_map(shape: Sequence[int], spoilt: Region, region: Region) -> NDArray[np.bool_]:
    """What can be read of a region of an image, one tile of which is broken."""
    y, x = np.ix_(*(np.arange(s.start, s.stop) for s in region))
    (rows, columns), (height, width) = spoilt, shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    broken = (y >= rows.start) & (y < rows.stop) & (x >= columns.start) & (x < columns.stop)
    return np.asarray(~(broken & inside))


def read_many(source: Source, regions: Sequence[Region], *, threads: int) -> list[Pixels]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(source.read, regions))


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


# --- slides


@pytest.fixture(scope="module")
def slide_rgb() -> Rgb:
    """The shipped slide as OpenSlide's own reader gives it."""
    with openslide.OpenSlide(str(SLIDE)) as handle:
        rgba = np.asarray(handle.read_region((0, 0), 0, handle.dimensions))
    assert (rgba[..., 3] == 255).all()
    return np.moveaxis(rgba[..., :3], -1, 0).copy()


def test_the_shipped_slide_reads_as_openslide_reads_it(slide_rgb: Rgb) -> None:
    source = open_source(SLIDE)
    assert source.geometry == Geometry(
        axes="yx", shape=(2967, 2220), spacing=(0.499, 0.499), unit="micrometer"
    )
    assert source.format == "OpenSlide aperio"
    assert len(source.levels) == 1
    regions = [
        (slice(700, 1000), slice(1300, 1501)),
        (slice(-50, 130), slice(-20, 90)),
        (slice(2900, 3100), slice(2100, 2333)),
        (slice(-300, -10), slice(20, 40)),
        (slice(100, 120), slice(2220, 2300)),
        (slice(100, 100), slice(0, 20)),
    ]
    for region in regions:
        assert_reads(source, slide_rgb, region)
    assert open_source(str(SLIDE), mpp=0.25).geometry.spacing == (0.25, 0.25)


def test_the_levels_of_a_slide_are_read_pixel_by_pixel(tmp_path: Path) -> None:
    image = random_image((152, 212), seed=11)
    path = tmp_path / "slide.svs"  # OpenSlide's generic reader: a tiled TIFF under another name
    levels = write_reduced_pages(path, image, compression="zlib")
    source = open_source(path, mpp=0.5)
    assert source.format == "OpenSlide generic-tiff"
    assert [level.geometry.shape for level in source.levels] == [(152, 212), (76, 106), (38, 53)]
    for level, expected in zip(source.levels, levels, strict=True):
        assert level.geometry.extent == (76.0, 106.0)
        for region in around(expected.shape[1:]):
            assert_reads(level, expected, region)
    assert len(source.levels[1].levels) == 2


def test_levels_that_are_no_whole_fraction_are_read_at_their_place(tmp_path: Path) -> None:
    # OpenSlide takes whole level-0 pixels, so that a place between them is off by half of one at most;
    # and its own downsample is a mean over the axes.
    shape = (61, 83)
    y, x = np.mgrid[:61, :83]
    image = np.stack([4 * y, 3 * x, 2 * y + x]).astype(np.uint8)
    path = tmp_path / "slide.svs"
    levels = write_reduced_pages(path, image, compression="zlib")
    source = open_source(path, mpp=0.5)
    for level, expected in zip(source.levels, levels, strict=True):
        extent = (shape[0] * 0.5, shape[1] * 0.5)
        np.testing.assert_allclose(level.geometry.extent, extent)
        height, width = expected.shape[1:]
        for top, left in [(0, 0), (5, 11), (height - 8, width - 7)]:
            region = (slice(top, top + 8), slice(left, left + 7))
            difference = level.read(region).values.astype(int) - expected[(slice(None), *region)]
            inside = difference[:, 1:-1, 1:-1]  # the outermost pixels may be mixed with glass
            assert np.abs(inside).max() <= 3  # a pixel of level 0 is up to 4 greys, one of level 1 is 8


def test_a_slide_without_a_pixel_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.zeros((64, 96, 3), np.uint8), tile=(32, 48), photometric="rgb", metadata=None)
    with pytest.raises(MissingSpacing, match=r"slide\.svs does not state its pixel size"):
        open_source(path)
    assert open_source(path, mpp=0.5).geometry.shape == (64, 96)


def test_a_slide_that_openslide_knows_but_cannot_open_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    shutil.copy(SLIDE, path)
    with tifffile.TiffFile(path) as file:
        where = file.pages[0].tags["Compression"].valueoffset  # type: ignore[union-attr]
    with path.open("r+b") as stream:
        stream.seek(where)
        stream.write(struct.pack("<H", 12_345))
    with pytest.raises(UnreadableSource, match=r"slide\.svs cannot be opened as a slide: "):
        open_source(path)


@pytest.mark.skipif(
    not BROKEN.is_file(), reason="needs ../shared/data/wsi-formats/broken.svs beside the project"
)
def test_a_really_broken_slide_is_unreadable() -> None:
    with pytest.raises(UnreadableSource, match=r"broken\.svs"):
        open_source(BROKEN, mpp=0.5)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_broken_tile_of_a_slide_is_not_valid_and_the_rest_is_read(
    tmp_path: Path, threads: int, slide_rgb: Rgb, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "slide.svs"
    shutil.copy(SLIDE, path)
    spoil(path, page=0, tile=3 * 10 + 4)  # tiles of 240, 10 a row
    spoilt = (slice(720, 960), slice(960, 1200))
    regions = [
        (slice(700, 740), slice(900, 1230)),
        (slice(900, 1000), slice(1100, 1300)),
        (slice(0, 200), slice(0, 230)),
        (slice(719, 721), slice(959, 961)),
        (slice(720, 960), slice(960, 1200)),
        (slice(800, 830), slice(1200, 1400)),
        (slice(-30, 1100), slice(900, 1000)),
        (slice(2800, 3000), slice(2000, 2260)),
    ]
    source = open_source(path)
    with caplog.at_level(logging.WARNING):
        many = read_many(source, regions * 2, threads=threads)
    for region, pixels in zip(regions * 2, many, strict=True):
        valid = spoilt_map((2967, 2220), spoilt, region)
        np.testing.assert_array_equal(pixels.valid, valid)
        np.testing.assert_array_equal(pixels.values, np.where(valid, padded(slide_rgb, region), 255))
    assert "reading its tiles singly" in caplog.text


# --- OME-Zarr


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
        UnreadableSource, match="is a folder without an OME-Zarr image, a DICOM series or the modalities"
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


def test_an_empty_list_of_multiscales_is_the_files_fault(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "s", mode="w")
    group.attrs["ome"] = {"version": "0.5", "multiscales": []}
    with pytest.raises(SourceError, match="multiscales"):
        open_source(tmp_path / "s")


# --- every block once


class Counting(ArraySource):
    """An array source that counts its reads and may refuse some."""

    def __init__(self, image: Rgb, *, block: tuple[int, ...], valid: NDArray[np.bool_] | None = None) -> None:
        plain = array_source(image, valid=valid)
        super().__init__(image, plain.geometry, valid=valid)
        self.block = block
        self.reads: Counter[tuple[tuple[int, int], ...]] = Counter()
        self._lock = threading.Lock()

    def read(self, region: Region) -> Pixels:
        with self._lock:
            self.reads[tuple((s.start, s.stop) for s in region)] += 1
        return super().read(region)


def random_regions(data: st.DataObject, shape: Sequence[int], *, count: int) -> list[Region]:
    regions: list[Region] = []
    for _ in range(count):
        starts = [data.draw(st.integers(-6, n + 3)) for n in shape]
        regions.append(tuple(slice(a, a + data.draw(st.integers(0, 20))) for a in starts))
    return regions


@given(st.integers(1, 4), st.data())
@settings(max_examples=30, deadline=None)
def test_cached_reads_equal_direct_ones_and_every_block_is_read_once(ndim: int, data: st.DataObject) -> None:
    limit = {1: 60, 2: 25, 3: 10, 4: 6}[ndim]
    shape = tuple(data.draw(st.integers(1, limit)) for _ in range(ndim))
    block = tuple(data.draw(st.integers(max(1, n // 4), n + 2)) for n in shape)
    image = random_image(shape, channels=2, seed=15)
    good = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) > 0.1
    source = Counting(image, block=block, valid=good)
    direct = array_source(image, valid=good)
    with CachedSource(source, readers=data.draw(st.integers(1, 3))) as cached:
        for region in random_regions(data, shape, count=4):
            if data.draw(st.booleans()):
                cached.prefetch(region)
            read, expected = cached.read(region), direct.read(region)
            np.testing.assert_array_equal(read.values, expected.values)
            np.testing.assert_array_equal(read.valid, expected.valid)
        whole = cached.read(cached.geometry.whole)
        np.testing.assert_array_equal(whole.values, image)
        assert cached.pixels_read == np.prod(shape)
    blocks = np.prod([-(-n // b) for n, b in zip(shape, block, strict=True)])
    assert len(source.reads) == blocks
    assert set(source.reads.values()) == {1}
    assert cached.levels == (cached,)


def test_blocks_above_the_row_are_dropped_and_read_again_only_when_asked_for() -> None:
    image = random_image((40, 30), seed=16)
    source = Counting(image, block=(10, 16))
    with CachedSource(source) as cached:
        cached.read((slice(0, 40), slice(0, 30)))
        cached.forget(before=19)  # the second row of blocks ends at 20
        cached.read((slice(10, 40), slice(0, 30)))
        assert set(source.reads.values()) == {1}
        assert_reads(cached, image, (slice(5, 12), slice(0, 16)))
        assert source.reads.pop(((0, 10), (0, 16))) == 2
        assert set(source.reads.values()) == {1}
        cached.forget(before=20)
        cached.read((slice(15, 25), slice(0, 30)))
        assert source.reads[((10, 20), (0, 16))] == 2
        assert source.reads[((20, 30), (0, 16))] == 1
        assert cached.pixels_read == 40 * 30 + 10 * 16 + 10 * 30


def test_several_threads_that_ask_share_one_cache() -> None:
    image = random_image((64, 48), seed=17)
    source = Counting(image, block=(16, 16))
    with CachedSource(source, readers=3) as cached:
        cached.prefetch(cached.geometry.whole)
        regions = [(slice(y, y + 20), slice(x, x + 17)) for y in range(-5, 60, 9) for x in range(-5, 40, 7)]
        for region, pixels in zip(regions, read_many(cached, regions, threads=4), strict=True):
            np.testing.assert_array_equal(pixels.values, padded(image, region))
    assert set(source.reads.values()) == {1}


def test_a_cached_slide_equals_the_slide(slide_rgb: Rgb) -> None:
    with CachedSource(open_source(SLIDE), readers=2) as cached:
        for region in ((slice(700, 800), slice(700, 1300)), (slice(-10, 20), slice(2200, 2240))):
            assert_reads(cached, slide_rgb, region)


# --- another pixel size


@pytest.mark.parametrize(
    ("shape", "to"),
    [
        ((40,), (13,)),
        ((40,), (57,)),
        ((23, 31), (9, 40)),
        ((9, 8, 7), (4, 8, 11)),
        ((5, 4, 6, 3), (3, 4, 2, 5)),
    ],
)
def test_a_constant_image_stays_constant_and_outside_is_white(
    shape: tuple[int, ...], to: tuple[int, ...]
) -> None:
    plain = array_source(np.full((3, *shape), 77, np.uint8))
    source = ResampledSource(
        plain, Geometry(axes=plain.geometry.axes, shape=to, spacing=(1.0,) * len(to), unit="micrometer")
    )
    for region in around(to):
        assert_reads(source, np.full((3, *to), 77, np.uint8), region)
    assert source.levels == (source,)


@given(st.integers(1, 3), st.data())
@settings(max_examples=30, deadline=None)
def test_resampled_in_parts_equals_resampled_whole(ndim: int, data: st.DataObject) -> None:
    limit = {1: 50, 2: 22, 3: 9}[ndim]
    shape, to = (tuple(data.draw(st.integers(1, limit)) for _ in range(ndim)) for _ in range(2))
    image = random_image(shape, channels=2, seed=18)
    good = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) > 0.05
    plain = array_source(image, valid=good)
    geometry = Geometry(axes=plain.geometry.axes, shape=to, spacing=(1.0,) * ndim, unit="micrometer")
    source = ResampledSource(plain, geometry)
    whole = source.read(geometry.whole)

    mixed = image.astype(np.float32)
    for axis, (n, m) in enumerate(zip(to, shape, strict=True)):
        made = taps(slice(0, n), size=n, from_size=m)
        wanted = np.arange(made.support.start, made.support.stop).clip(0, m - 1)
        mixed = mix(mixed.take(wanted, axis=axis + 1), made, axis=axis + 1, start=made.support.start)
    np.testing.assert_array_equal(whole.values, np.rint(mixed).astype(np.uint8))

    for region in random_regions(data, to, count=4):
        pixels = source.read(region)
        np.testing.assert_array_equal(pixels.values, padded(whole.values, region))
        valid = padded(whole.valid[None].astype(np.uint8), region)[0] != 0
        np.testing.assert_array_equal(pixels.valid, valid)


def test_a_pixel_is_valid_only_where_all_that_it_is_mixed_from_is() -> None:
    good = np.ones((16, 18), bool)
    good[5, 7] = False
    plain = array_source(np.full((3, 16, 18), 50, np.uint8), valid=good)
    source = ResampledSource(plain, plain.geometry.at_spacing((1.0, 1.0)))
    # Halved, pixel i is mixed from those whose centres are nearer than 2 to 2 i + 1: 2 i - 1 to 2 i + 2.
    expected = np.ones((8, 9), bool)
    expected[2:4, 3:5] = False
    np.testing.assert_array_equal(source.read(source.geometry.whole).valid, expected)


def test_the_support_of_a_region_is_all_that_its_pixels_depend_on() -> None:
    image = random_image((30, 44), seed=19)
    plain = array_source(image)
    source = ResampledSource(plain, plain.geometry.at_spacing((1.3, 0.9)))
    region = (slice(3, 7), slice(8, 15))
    before = source.read(region).values
    outside = np.ones((30, 44), bool)
    rows, columns = (slice(max(0, s.start), s.stop) for s in source.support(region))
    outside[rows, columns] = False
    other = image.copy()
    other[:, outside] ^= 0xFF
    changed = ResampledSource(array_source(other), source.geometry)
    np.testing.assert_array_equal(changed.read(region).values, before)


class Pyramid(ArraySource):
    """An array with coarser ones."""

    def __init__(self, spacings: Sequence[tuple[float, float]]) -> None:
        self.sources: list[Source] = []
        for y, x in spacings:
            shape = (round(64 / y), round(48 / x))
            geometry = Geometry(axes="yx", shape=shape, spacing=(y, x), unit="micrometer")
            self.sources.append(ArraySource(np.zeros((3, *shape), np.uint8), geometry))
        finest = self.sources[0].geometry
        super().__init__(np.zeros((3, *finest.shape), np.uint8), finest)

    @property
    def levels(self) -> Sequence[Source]:
        return self.sources


PYRAMID = Pyramid([(0.25, 0.25), (0.5, 0.5), (1.0, 1.0), (4.0, 4.0)])


@pytest.mark.parametrize(
    ("spacing", "level", "resampled"),
    [
        (0.25, 0, False),
        (0.26, 0, False),
        (0.24, 0, False),
        (0.3, 0, True),
        (0.45, 0, True),
        (0.49, 1, False),
        (0.5, 1, False),
        (0.7, 1, True),
        (1.0, 2, False),
        (3.0, 2, True),
        (8.0, 3, True),
    ],
)
def test_the_coarsest_level_that_is_fine_enough_is_chosen(
    spacing: float, level: int, resampled: bool
) -> None:
    choice = choose_level(PYRAMID, spacing=spacing)
    assert choice.level is PYRAMID.sources[level]
    assert choice.resampled is resampled
    if resampled:
        assert choice.geometry == PYRAMID.geometry.at_spacing((spacing, spacing))
        fine = PYRAMID.sources[level].geometry.spacing[0]
        assert choice.remark == f"resampled from {fine:.4g} to {spacing:.4g} micrometer"
        assert at_level(choice, choice.level).geometry == choice.geometry
    else:
        assert choice.geometry == choice.level.geometry
        assert at_level(choice, choice.level) is choice.level


def test_a_level_within_5_percent_is_used_as_it_is_and_that_is_said() -> None:
    choice = choose_level(PYRAMID, spacing=0.26)
    assert choice.remark == "pixels of 0.25 micrometer are used as they are: 3.8 % from the model's 0.26"
    assert choose_level(PYRAMID, spacing=0.25).remark == ""


def test_a_model_of_any_pixel_size_takes_the_finest_level() -> None:
    choice = choose_level(PYRAMID, spacing=None)
    assert choice.level is PYRAMID
    assert (choice.geometry, choice.resampled, choice.remark) == (PYRAMID.geometry, False, "")


def test_a_slide_coarser_than_the_model_is_refused_unless_allowed() -> None:
    with pytest.raises(
        SourceError, match=r"has pixels of 0\.25 micrometer, coarser than the 0\.2 that .*--allow"
    ):
        choose_level(PYRAMID, spacing=0.2)
    choice = choose_level(PYRAMID, spacing=0.2, allow_upsampling=True)
    assert choice.level is PYRAMID or choice.level is PYRAMID.sources[0]
    assert choice.resampled
    assert choice.geometry.shape == (320, 240)


def test_the_coarser_axis_decides_where_pixels_are_not_square() -> None:
    oblong = Pyramid([(0.25, 0.2), (0.5, 0.4), (1.0, 0.8)])
    assert choose_level(oblong, spacing=0.5).level is oblong.sources[1]
    assert choose_level(oblong, spacing=0.5).resampled
    with pytest.raises(SourceError, match=r"has pixels of 0\.25 micrometer"):
        choose_level(oblong, spacing=0.2)
    assert choose_level(oblong, spacing=0.9).level is oblong.sources[1]


def test_a_cache_read_by_many_threads_reads_each_block_once() -> None:
    """A resampled image is read by the threads of the cache above it, which share the cache below."""
    image = random_image((640, 512), seed=4)
    below = CachedSource(array_source(image), readers=2)
    with below, ThreadPoolExecutor(8) as pool:
        regions = [(slice(y, y + 96), slice(x, x + 96)) for y in range(0, 640, 32) for x in range(0, 512, 32)]
        pieces = list(pool.map(below.read, regions))
        below.forget(before=10_000)
    for region, piece in zip(regions, pieces, strict=True):
        inside = image[(slice(None), *region)]
        np.testing.assert_array_equal(piece.values[:, : inside.shape[1], : inside.shape[2]], inside)
    assert below.pixels_read == 640 * 512
