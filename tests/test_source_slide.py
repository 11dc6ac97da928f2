"""Slides read as OpenSlide reads them, whatever is asked for and whatever is broken."""

from __future__ import annotations

import logging
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.conftest import SLIDE, random_image
from tests.images import Rgb, around, assert_reads, padded, read_many, spoil, spoilt_map, write_reduced_pages
from wsiseg.errors import MissingSpacing, UnreadableSource
from wsiseg.geometry import Geometry
from wsiseg.sources import open_source

BROKEN = Path(__file__).parents[2] / "shared" / "data" / "wsi-formats" / "broken.svs"


def test_the_shipped_slide_reads_as_openslide_reads_it(slide_rgb: Rgb) -> None:
    source = open_source(SLIDE)
    assert source.geometry == Geometry(
        axes="yx", shape=(2967, 2220), spacing=(0.499, 0.499), unit="micrometer"
    )
    assert source.format == "OpenSlide aperio, tiles by tifffile"
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
