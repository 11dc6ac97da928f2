"""Stained tissue is found, glass and ink are not, and what cannot be read is never skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsiseg.geometry import Region, clip, is_empty
from wsiseg.tissue import MAX_HOLE_UM2, MIN_OBJECT_UM2, TissueMask, find_tissue, tissue_mask

TILES = Path(__file__).parents[2] / "shared" / "data" / "artefact-tiles"
needs_tiles = pytest.mark.skipif(
    not TILES.is_dir(), reason="needs ../shared/data/artefact-tiles beside the project"
)

Rgb = NDArray[np.uint8]
PINK = np.array((205, 120, 170), np.uint8)
WHITE = (255, 255, 255)


def slide_of(color: tuple[int, int, int] | NDArray[np.uint8], shape: tuple[int, ...]) -> Rgb:
    """A picture (3, *shape) of one colour."""
    return np.broadcast_to(np.array(color, np.uint8).reshape(3, *(1,) * len(shape)), (3, *shape)).copy()


def all_valid(rgb: Rgb) -> NDArray[np.bool_]:
    return np.ones(rgb.shape[1:], bool)


@pytest.mark.parametrize(
    "glass", [WHITE, (245, 245, 245), (230, 232, 228), (190, 190, 190), (90, 90, 90), (0, 0, 0)]
)
@pytest.mark.parametrize("margin_um", [0.0, 50.0, 200.0])
def test_a_blank_slide_has_no_tissue(glass: tuple[int, int, int], margin_um: float) -> None:
    rgb = slide_of(glass, (80, 95))
    assert not find_tissue(rgb, all_valid(rgb)).any()
    assert tissue_mask(rgb, all_valid(rgb), spacing_um=8.0, margin_um=margin_um).share == 0.0


def test_a_blank_picture_smaller_than_a_lumen_has_no_tissue() -> None:
    rgb = slide_of(WHITE, (30, 42))  # 240 x 336 µm: its glass is not a hole in anything
    assert tissue_mask(rgb, all_valid(rgb), spacing_um=8.0, margin_um=50.0).share == 0.0


def test_glass_at_the_border_of_a_small_picture_is_no_hole() -> None:
    rgb = slide_of(WHITE, (30, 42))
    rgb[:, :, 12:] = PINK[:, None, None]
    expected = np.zeros((30, 42), bool)
    expected[:, 12:] = True
    grid = tissue_mask(rgb, all_valid(rgb), spacing_um=8.0, margin_um=0.0).grid
    np.testing.assert_array_equal(grid, expected)


def test_noise_of_a_camera_on_glass_is_no_tissue() -> None:
    rng = np.random.default_rng(5)
    rgb = np.clip(rng.normal(238, 3, (3, 60, 45)), 0, 255).astype(np.uint8)
    assert not find_tissue(rgb, all_valid(rgb)).any()


@pytest.mark.parametrize("shape", [(64,), (30, 41), (9, 14, 11)])
def test_a_pink_blob_is_found_exactly_in_1_to_3_dimensions(shape: tuple[int, ...]) -> None:
    rgb = slide_of((243, 241, 244), shape)
    blob = tuple(slice(n // 4, n // 2) for n in shape)
    rgb[(slice(None), *blob)] = PINK.reshape(3, *(1,) * len(shape))
    expected = np.zeros(shape, bool)
    expected[blob] = True
    np.testing.assert_array_equal(find_tissue(rgb, all_valid(rgb)), expected)


def test_tissue_is_found_on_tinted_glass_and_the_glass_is_not() -> None:
    rgb = slide_of((236, 230, 222), (40, 50))  # yellowish light
    rgb[:, 10:20, 15:40] = PINK[:, None, None]
    found = find_tissue(rgb, all_valid(rgb))
    assert found.sum() == 10 * 25
    assert found[10:20, 15:40].all()


def test_a_slide_that_is_all_tissue_is_all_tissue() -> None:
    rgb = slide_of(PINK, (20, 30))
    assert find_tissue(rgb, all_valid(rgb)).all()


@pytest.mark.parametrize("ink", [(20, 60, 150), (20, 90, 60), (30, 140, 50), (60, 150, 160), (90, 130, 200)])
def test_blue_and_green_ink_is_no_tissue(ink: tuple[int, int, int]) -> None:
    rgb = slide_of((244, 244, 244), (48, 64))
    rgb[:, 5:25, 8:30] = np.array(ink, np.uint8)[:, None, None]
    rgb[:, 30:45, 40:60] = PINK[:, None, None]
    found = find_tissue(rgb, all_valid(rgb))
    assert found[30:45, 40:60].all()
    assert not found[:28].any()


def test_what_could_not_be_read_counts_as_tissue_however_small() -> None:
    rgb = slide_of(WHITE, (40, 60))
    valid = all_valid(rgb)
    valid[7, 50] = False
    expected = ~valid
    np.testing.assert_array_equal(find_tissue(rgb, valid), expected)
    np.testing.assert_array_equal(tissue_mask(rgb, valid, spacing_um=20.0, margin_um=0.0).grid, expected)


def test_unreadable_white_does_not_stand_for_the_colour_of_the_glass() -> None:
    rgb = slide_of((180, 178, 182), (40, 60))
    valid = all_valid(rgb)
    valid[:20] = False
    rgb[:, :20] = 255
    assert not find_tissue(rgb, valid)[20:].any()


@pytest.mark.parametrize(("spacing_um", "margin_um"), [(8.0, 50.0), (4.0, 33.0), (10.0, 100.0), (8.0, 0.0)])
def test_the_margin_is_exact_in_micrometres(spacing_um: float, margin_um: float) -> None:
    rgb = slide_of(WHITE, (150, 170))
    blob = np.zeros((150, 170), bool)
    blob[40:52, 50:64] = True
    rgb[:, blob] = PINK[:, None]
    y, x = np.mgrid[:150, :170]
    # Distance of a pixel's centre to that of the nearest pixel of the blob.
    dy = np.maximum(0, np.maximum(40 - y, y - 51))
    dx = np.maximum(0, np.maximum(50 - x, x - 63))
    expected = np.hypot(dy, dx) * spacing_um <= margin_um
    grid = tissue_mask(rgb, all_valid(rgb), spacing_um=spacing_um, margin_um=margin_um).grid
    np.testing.assert_array_equal(grid, expected)


def test_specks_go_and_holes_are_filled_by_area_in_micrometres() -> None:
    spacing_um = 20.0
    rgb = slide_of(WHITE, (120, 130))
    pixels = int(MIN_OBJECT_UM2 / spacing_um**2)  # 2
    rgb[:, 2, 2 : 2 + pixels] = PINK[:, None]  # dust
    rgb[:, 6, 2 : 3 + pixels] = PINK[:, None]  # one pixel more
    side = int((MAX_HOLE_UM2 / spacing_um**2) ** 0.5)  # 25
    rgb[:, 15:115, 5:125] = PINK[:, None, None]
    rgb[:, 20 : 20 + side, 10 : 10 + side] = 255  # a lumen
    rgb[:, 60 : 61 + side, 60 : 60 + side] = 255  # a gap
    expected = np.zeros((120, 130), bool)
    expected[6, 2 : 3 + pixels] = True
    expected[15:115, 5:125] = True
    expected[60 : 61 + side, 60 : 60 + side] = False
    grid = tissue_mask(rgb, all_valid(rgb), spacing_um=spacing_um, margin_um=0.0).grid
    np.testing.assert_array_equal(grid, expected)


def test_on_a_grid_coarser_than_dust_nothing_is_removed() -> None:
    rgb = slide_of(WHITE, (12, 15))
    rgb[:, 4, 5] = PINK
    rgb[:, 7:10, 7:10] = PINK[:, None, None]
    rgb[:, 8, 8] = 255
    mask = tissue_mask(rgb, all_valid(rgb), spacing_um=600.0, margin_um=0.0)
    assert mask.grid.sum() == 9
    assert mask.grid[4, 5]
    assert not mask.grid[8, 8]
    assert mask.share == 9 / 180


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_foreground_of_pixels_is_that_of_the_grid_cell_under_their_centre(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 3))
    grid_shape = data.draw(st.lists(st.integers(1, 6), min_size=ndim, max_size=ndim))
    shape = tuple(data.draw(st.lists(st.integers(1, 20), min_size=ndim, max_size=ndim)))
    grid = np.random.default_rng(data.draw(st.integers(0, 999))).random(grid_shape) < 0.3
    starts = data.draw(st.lists(st.integers(-5, 22), min_size=ndim, max_size=ndim))
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=ndim, max_size=ndim))
    region: Region = tuple(slice(a, a + n) for a, n in zip(starts, lengths, strict=True))

    cells = [
        [min(int((2 * i + 1) * g // (2 * n)), g - 1) for i in range(n)]
        for n, g in zip(shape, grid_shape, strict=True)
    ]
    image = grid[np.ix_(*cells)]
    mask = TissueMask(grid)
    inside = clip(region, shape)
    if is_empty(inside):
        assert not mask.any_in(region, shape=shape)
        return
    expected = image[inside]
    np.testing.assert_array_equal(mask.at(inside, shape=shape), expected)
    touches = mask.any_in(region, shape=shape)
    assert touches >= expected.any()  # tissue is never missed
    if all(n >= g for n, g in zip(shape, grid_shape, strict=True)):
        assert touches == expected.any()


def test_a_region_outside_the_image_touches_no_tissue() -> None:
    mask = TissueMask(np.ones((3, 4), bool))
    assert mask.share == 1.0
    assert not mask.any_in((slice(-9, -1), slice(0, 5)), shape=(30, 44))
    assert not mask.any_in((slice(0, 9), slice(44, 50)), shape=(30, 44))
    assert mask.any_in((slice(29, 60), slice(43, 90)), shape=(30, 44))


def read_tile(name: str) -> Rgb:
    with Image.open(TILES / name) as picture:
        return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)


@needs_tiles
@pytest.mark.parametrize("name", ["no-tissue.png", "almost-white-1.png"])
def test_real_tiles_of_glass_are_nearly_empty(name: str) -> None:
    rgb = read_tile(name)
    assert find_tissue(rgb, all_valid(rgb)).mean() < 0.02


@needs_tiles
def test_a_real_tile_of_tissue_is_mostly_tissue() -> None:
    rgb = read_tile("tcga-lung-rgb.png")
    assert find_tissue(rgb, all_valid(rgb)).mean() > 0.5
