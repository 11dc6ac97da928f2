"""Scanners' own formats, each in a small file: where OpenSlide reads its pixels, and slides with bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsiseg
from tests.cases import CROPS, NAMES, SMALL, mask_of
from tests.images import Rgb
from tests.vendor_files import TILE, halved, write_bif, write_mirax, write_ndpi, write_scn
from wsiseg.files import companions
from wsiseg.sources import open_source

TOLERANCE = 6
"""Of colours, after a JPEG at quality 95."""
MARGIN = TILE
"""Of glass round what was scanned."""


def tissue(height: int, width: int) -> Rgb:
    """A piece of a real crop, each pixel as a block of 4 x 4: what JPEG keeps."""
    crop = np.asarray(Image.open(CROPS / "images" / f"{NAMES[0]}.png").convert("RGB"))
    return np.kron(crop[: height // 4, : width // 4], np.ones((4, 4, 1), np.uint8))


def on_glass(rgb: Rgb, *, bottom: int = 0, right: int = 0) -> Rgb:
    """A picture with MARGIN of white on each side, and more at the bottom and right."""
    return np.pad(rgb, ((MARGIN, MARGIN + bottom), (MARGIN, MARGIN + right), (0, 0)), constant_values=255)


def mirax(folder: Path) -> tuple[Path, Rgb]:
    """2 x 3 tiles in the middle of a grid that is wider on the right, so that the slide has bounds."""
    rgb = tissue(2 * TILE, 3 * TILE)
    tiles = {
        (row + 1, column + 1): rgb[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        for row in range(2)
        for column in range(3)
    }
    return write_mirax(folder, tiles, grid=(4, 6)), on_glass(rgb, right=TILE)


def scn(folder: Path) -> tuple[Path, Rgb]:
    rgb = tissue(2 * TILE, 3 * TILE)
    return write_scn(folder / "slide.scn", rgb, around=MARGIN), on_glass(rgb)


def ndpi(folder: Path) -> tuple[Path, Rgb]:
    rgb = tissue(2 * TILE, 3 * TILE)
    return write_ndpi(folder / "slide.ndpi", rgb), rgb


def bif(folder: Path) -> tuple[Path, Rgb]:
    rgb = tissue(2 * TILE, 3 * TILE)
    return write_bif(folder / "slide.bif", rgb), rgb


FORMATS = [
    (mirax, "OpenSlide mirax", (0.4, 0.4)),
    (scn, "OpenSlide leica", (0.5, 0.5)),
    (ndpi, "OpenSlide hamamatsu", (0.5, 0.4)),
    (bif, "OpenSlide ventana", (0.465, 0.465)),
]
Make = Callable[[Path], tuple[Path, Rgb]]


@pytest.mark.parametrize(("make", "name", "spacing"), FORMATS)
def test_every_pixel_lies_where_the_scanner_put_it_and_the_rest_is_glass(
    make: Make, name: str, spacing: tuple[float, float], tmp_path: Path
) -> None:
    path, rgb = make(tmp_path)
    source = open_source(path)
    assert source.format == name
    assert source.geometry.spacing == pytest.approx(spacing, rel=1e-4)
    for level, expected in zip(source.levels[:2], (rgb, halved(rgb)), strict=True):
        assert level.geometry.shape == expected.shape[:2]
        found = level.read(level.geometry.whole)
        assert found.valid.all()
        off = np.abs(np.moveaxis(found.values, 0, -1).astype(int) - expected)
        # A block's last row or column may take from its neighbour; a shift by a pixel changes a quarter.
        assert np.mean(off > TOLERANCE) < 0.02


@pytest.mark.parametrize("make", [mirax, scn])
def test_the_mask_of_a_slide_with_bounds_covers_the_whole_grid(make: Make, tmp_path: Path) -> None:
    path, rgb = make(tmp_path)
    mask = mask_of(wsiseg.segment(path, tmp_path / "out", "breast-tissue3", **SMALL))
    assert mask.shape == rgb.shape[:2]
    assert not (mask == 255).any()
    scanned = (rgb != 255).any(axis=-1)
    assert (mask[:8] == 0).all()  # the tissue mask has a margin round what it finds
    assert (mask[scanned] != 0).mean() > 0.5
    assert (mask[~scanned] != 0).mean() < 0.2


def test_a_mirax_slide_belongs_to_the_files_of_its_folder(tmp_path: Path) -> None:
    path, _ = mirax(tmp_path)
    assert [file.name for file in companions(path)] == ["Data0000.dat", "Index.dat", "Slidedat.ini"]
