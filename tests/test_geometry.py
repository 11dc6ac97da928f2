"""Regions are half-open slices of pixel corners; grids over one extent have whole pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.geometry import (
    Geometry,
    Region,
    clip,
    is_empty,
    region_shape,
    relative_to,
    shift,
)

VOLUME = Geometry(axes="zyx", shape=(3, 5, 8), spacing=(2.0, 0.5, 0.25), unit="millimeter")


@st.composite
def regions_and_shapes(draw: st.DrawFn) -> tuple[Region, tuple[int, ...]]:
    """A region in 1 to 4 dimensions, which may stick out of the grid or miss it, and the grid's shape."""
    ndim = draw(st.integers(1, 4))
    starts = draw(st.lists(st.integers(-9, 12), min_size=ndim, max_size=ndim))
    lengths = draw(st.lists(st.integers(0, 9), min_size=ndim, max_size=ndim))
    shape = draw(st.lists(st.integers(1, 7), min_size=ndim, max_size=ndim))
    region = tuple(slice(a, a + n) for a, n in zip(starts, lengths, strict=True))
    return region, tuple(shape)


def covered(region: Region, *, low: int = -20, high: int = 40) -> set[tuple[int, ...]]:
    """Every pixel of a region, one by one."""
    inside = [[i for i in range(low, high) if s.start <= i < s.stop] for s in region]
    grids = np.meshgrid(*inside, indexing="ij")
    return set(zip(*(g.ravel().tolist() for g in grids), strict=True))


def test_extent_and_pixel_area_are_physical() -> None:
    assert VOLUME.extent == (6.0, 2.5, 2.0)
    assert VOLUME.pixel_area == 0.25
    assert VOLUME.whole == (slice(0, 3), slice(0, 5), slice(0, 8))


def test_another_spacing_covers_the_same_extent_rounded_up_to_whole_pixels() -> None:
    coarse = VOLUME.at_spacing((4.0, 1.0, 0.75))
    assert coarse == Geometry(axes="zyx", shape=(2, 3, 3), spacing=(4.0, 1.0, 0.75), unit="millimeter")
    assert VOLUME.at_spacing((100.0, 100.0, 100.0)).shape == (1, 1, 1)


@given(n=st.integers(1, 10_000), spacing=st.floats(0.05, 50.0), factor=st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_a_rounding_error_never_adds_a_pixel(n: int, spacing: float, factor: int) -> None:
    line = Geometry(axes="x", shape=(n * factor,), spacing=(spacing,), unit="micrometer")
    assert line.at_spacing((spacing * factor,)).shape == (n,)
    assert line.at_spacing((spacing,)).shape == line.shape


@pytest.mark.parametrize(
    ("axes", "shape", "spacing", "message"),
    [
        ("yx", (4, 6, 2), (0.5, 0.25), "must have one entry per axis"),
        ("yx", (4, 6), (0.5,), "must have one entry per axis"),
        ("zyx", (4, 6), (0.5, 0.25), "must have one entry per axis"),
        ("yy", (4, 6), (0.5, 0.25), "name an axis twice"),
        ("yx", (4, 0), (0.5, 0.25), r"shape \(4, 0\) has an axis without pixels"),
        ("yx", (-4, 6), (0.5, 0.25), "has an axis without pixels"),
        ("yx", (4, 6), (0.5, 0.0), r"spacing \(0.5, 0.0\) must be finite and positive"),
        ("yx", (4, 6), (-0.5, 0.25), "must be finite and positive"),
        ("yx", (4, 6), (0.5, math.nan), "must be finite and positive"),
        ("yx", (4, 6), (math.inf, 0.25), "must be finite and positive"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(
    axes: str, shape: tuple[int, ...], spacing: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(axes=axes, shape=shape, spacing=spacing, unit="micrometer")


def test_regions_and_shapes_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        clip((slice(0, 1), slice(0, 1)), (3,))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        shift((slice(0, 1),), (3, 3))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        shift((slice(0, 1), slice(0, 1)), (3,))


@given(regions_and_shapes())
@settings(max_examples=30, deadline=None)
def test_the_clipped_region_holds_exactly_the_pixels_inside_the_grid(
    case: tuple[Region, tuple[int, ...]],
) -> None:
    region, shape = case
    clipped = clip(region, shape)
    whole = tuple(slice(0, n) for n in shape)
    assert covered(clipped) == covered(region) & covered(whole)
    assert all(0 <= s.start <= s.stop <= n for s, n in zip(clipped, shape, strict=True))
    assert is_empty(clipped) == (math.prod(region_shape(clipped)) == 0)


@given(regions_and_shapes(), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_growing_moving_and_moving_back_is_undone(case: tuple[Region, tuple[int, ...]], by: int) -> None:
    region, shape = case
    steps = [by + n for n in range(len(shape))]
    grown = tuple(slice(s.start - n, s.stop + n) for s, n in zip(region, steps, strict=True))
    assert shift(shift(region, steps), [-s for s in steps]) == region
    inner = relative_to(region, grown)
    assert inner == tuple(slice(s, s + n) for s, n in zip(steps, region_shape(region), strict=True))
    assert is_empty(region) == (not covered(region))


def test_a_backward_region_has_no_pixels() -> None:
    assert region_shape((slice(5, 2), slice(0, 3))) == (0, 3)
    assert is_empty((slice(5, 2), slice(0, 3)))
    assert clip((slice(5, 2), slice(0, 3)), (9, 9)) == (slice(5, 5), slice(0, 3))
