"""Plain pictures give their pixels, whatever their colours, or one clear sentence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import random_image
from tests.images import around, assert_reads, rgb_last
from wsiseg.errors import MissingSpacing, SourceError, UnreadableSource
from wsiseg.geometry import Geometry
from wsiseg.sources import open_source
from wsiseg.sources.base import to_rgb_uint8


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
