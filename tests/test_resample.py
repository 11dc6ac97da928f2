"""Grids over one extent meet at pixel centres, exactly, and piece by piece as in one go."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsiseg.geometry import Region
from wsiseg.resample import mix, nearest, needed_rows, sample, taps

sizes = st.integers(1, 40)


@st.composite
def parts(draw: st.DrawFn) -> tuple[slice, int, int]:
    """A stretch of output pixels (at least one), the output's size and the input's."""
    size, from_size = draw(sizes), draw(sizes)
    start = draw(st.integers(0, size - 1))
    return slice(start, draw(st.integers(start + 1, size))), size, from_size


def resize(values: NDArray[np.float32], part: slice, *, size: int) -> NDArray[np.float32]:
    """A stretch of a line on a grid of `size` pixels, from just the input that it needs."""
    made = taps(part, size=size, from_size=len(values))
    wanted = np.arange(made.support.start, made.support.stop)
    padded = np.where((wanted >= 0) & (wanted < len(values)), values[wanted.clip(0, len(values) - 1)], 1e6)
    return mix(padded.astype(np.float32), made, axis=0, start=made.support.start)


def triangle(values: NDArray[np.float32], i: int, *, size: int) -> float:
    """Output pixel `i` by the definition: a triangle over the input pixels' centres, normed to one."""
    scale = len(values) / size
    radius = max(1.0, scale)
    centre = (i + 0.5) * scale
    weights = [max(0.0, 1 - abs(j + 0.5 - centre) / radius) for j in range(len(values))]
    return sum(w * float(v) for w, v in zip(weights, values, strict=True)) / sum(weights)


@given(parts(), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_triangle_taps_equal_brute_force(case: tuple[slice, int, int], seed: int) -> None:
    part, size, from_size = case
    values = np.random.default_rng(seed).uniform(0, 255, from_size).astype(np.float32)
    expected = [triangle(values, i, size=size) for i in range(part.start, part.stop)]
    np.testing.assert_allclose(resize(values, part, size=size), expected, rtol=1e-5, atol=1e-3)


@given(parts())
@settings(max_examples=30, deadline=None)
def test_weights_are_not_negative_and_sum_to_one(case: tuple[slice, int, int]) -> None:
    part, size, from_size = case
    made = taps(part, size=size, from_size=from_size)
    assert (made.weights >= 0).all()
    np.testing.assert_allclose(made.weights.sum(axis=1), 1.0, atol=1e-6)
    assert made.support.start <= made.support.stop


@given(parts())
@settings(max_examples=30, deadline=None)
def test_a_constant_stays_constant(case: tuple[slice, int, int]) -> None:
    part, size, from_size = case
    line = np.full(from_size, 137.0, np.float32)
    np.testing.assert_allclose(resize(line, part, size=size), 137.0, rtol=1e-6)


@pytest.mark.parametrize(("size", "from_size"), [(10, 40), (40, 10), (12, 36), (30, 30), (36, 12)])
def test_a_linear_ramp_stays_linear_away_from_the_border(size: int, from_size: int) -> None:
    scale = from_size / size
    ramp = (np.arange(from_size) + 0.5).astype(np.float32)  # each value is the place of its pixel's centre
    out = resize(ramp, slice(0, size), size=size)
    centres = (np.arange(size) + 0.5) * scale
    radius = max(1.0, scale)
    interior = (centres - radius >= 0) & (centres + radius <= from_size)
    assert interior.sum() >= 6
    np.testing.assert_allclose(out[interior], centres[interior], rtol=1e-5)


def test_equal_sizes_leave_every_value_as_it_is() -> None:
    values = np.random.default_rng(3).uniform(0, 255, 23).astype(np.float32)
    np.testing.assert_array_equal(resize(values, slice(0, 23), size=23), values)


@given(st.integers(1, 4), st.data())
@settings(max_examples=30, deadline=None)
def test_a_piece_equals_the_piece_of_the_whole_bit_for_bit(ndim: int, data: st.DataObject) -> None:
    limit = {1: 40, 2: 20, 3: 9, 4: 6}[ndim]
    many = st.lists(st.integers(1, limit), min_size=ndim, max_size=ndim)
    shape, from_shape = data.draw(many), data.draw(many)
    region = []
    for n in shape:
        start = data.draw(st.integers(0, n - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, n))))
    image = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(0, 255, from_shape)

    def of(places: list[slice]) -> NDArray[np.float32]:
        values = image.astype(np.float32)
        for axis, (part, size, from_size) in enumerate(zip(places, shape, from_shape, strict=True)):
            made = taps(part, size=size, from_size=from_size)
            wanted = np.arange(made.support.start, made.support.stop).clip(0, from_size - 1)
            values = mix(values.take(wanted, axis=axis), made, axis=axis, start=made.support.start)
        return values

    whole = of([slice(0, n) for n in shape])
    np.testing.assert_array_equal(of(region), whole[tuple(region)])


@given(st.integers(1, 4), st.data())
@settings(max_examples=30, deadline=None)
def test_class_indices_come_from_the_pixel_that_holds_the_centre(ndim: int, data: st.DataObject) -> None:
    limit = {1: 60, 2: 14, 3: 7, 4: 5}[ndim]
    many = st.lists(st.integers(1, limit), min_size=ndim, max_size=ndim)
    shape, from_shape = tuple(data.draw(many)), tuple(data.draw(many))
    region: Region = ()
    for n in shape:
        start = data.draw(st.integers(0, n - 1))
        region += (slice(start, data.draw(st.integers(start + 1, n))),)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, from_shape, dtype=np.uint8)

    places = [
        [math.floor((Fraction(i) + Fraction(1, 2)) * m / n) for i in range(part.start, part.stop)]
        for part, n, m in zip(region, shape, from_shape, strict=True)
    ]
    expected = mask[np.ix_(*places)]
    np.testing.assert_array_equal(sample(mask, region, shape=shape, from_shape=from_shape), expected)

    rows = needed_rows(region[0], size=shape[0], from_size=from_shape[0])
    assert rows == slice(places[0][0], places[0][-1] + 1)
    piece = sample(mask[rows], region, shape=shape, from_shape=from_shape, first_row=rows.start)
    np.testing.assert_array_equal(piece, expected)


@given(size=st.integers(1, 400_000), from_size=st.integers(1, 400_000), data=st.data())
@settings(max_examples=30, deadline=None)
def test_nearest_is_exact_for_the_sizes_of_slides(size: int, from_size: int, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, size - 1))
    expected = math.floor((Fraction(i) + Fraction(1, 2)) * from_size / size)
    np.testing.assert_array_equal(nearest(slice(i, i + 1), size=size, from_size=from_size), [expected])


def test_halving_by_nearest_takes_the_later_of_the_two_pixels_on_the_border() -> None:
    np.testing.assert_array_equal(nearest(slice(0, 4), size=4, from_size=8), [1, 3, 5, 7])
    np.testing.assert_array_equal(nearest(slice(0, 8), size=8, from_size=4), [0, 0, 1, 1, 2, 2, 3, 3])


def test_regions_and_shapes_of_other_lengths_are_refused() -> None:
    mask = np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        sample(mask, (slice(0, 1), slice(0, 1)), shape=(3,), from_shape=(3, 4))
