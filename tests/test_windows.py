"""Windows partition an image, and what is stitched from them is what one window gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.geometry import region_shape
from wsiseg.windows import WindowPlan, axis_weights, check_taper, footprint, plan_of_patches, slabs


@st.composite
def plans(draw: st.DrawFn) -> tuple[WindowPlan, int]:
    """A plan in 1 to 4 dimensions and a taper that fits it."""
    ndim = draw(st.integers(1, 4))
    limit = {1: 60, 2: 30, 3: 12, 4: 8}[ndim]
    sizes = st.lists(st.integers(1, limit), min_size=ndim, max_size=ndim)
    shape, core = tuple(draw(sizes)), tuple(draw(sizes))
    halo = tuple(draw(st.lists(st.integers(0, 5), min_size=ndim, max_size=ndim)))
    plan = WindowPlan(shape=shape, core=core, halo=halo)
    return plan, draw(st.integers(0, min(min(halo), min(core) // 2)))


@given(plans())
@settings(max_examples=60, deadline=None)
def test_cores_partition_the_image_and_windows_have_one_shape(case: tuple[WindowPlan, int]) -> None:
    plan, _ = case
    owners = np.zeros(plan.shape, int)
    for window in plan.windows():
        owners[window.core] += 1
        assert region_shape(window.read) == plan.window_shape
        for read, core, halo in zip(window.read, window.core, plan.halo, strict=True):
            assert core.start - read.start == halo
    np.testing.assert_array_equal(owners, 1)
    assert len(plan) == len(list(plan.windows()))


@given(plans())
@settings(max_examples=60, deadline=None)
def test_blend_weights_add_up_to_one_at_every_pixel(case: tuple[WindowPlan, int]) -> None:
    plan, taper = case
    total = np.zeros(plan.shape)
    for window in plan.windows():
        place = footprint(plan, window, taper=taper)
        weights = np.ones(())
        for axis in range(len(plan.shape)):
            weights = np.multiply.outer(weights, axis_weights(plan, window, axis=axis, taper=taper))
        assert weights.shape == region_shape(place)
        assert (weights > 0).all()
        total[place] += weights
    np.testing.assert_allclose(total, 1.0, rtol=0, atol=1e-6)


def test_the_ramp_between_two_cores_is_taken_at_pixel_centres() -> None:
    plan = WindowPlan(shape=(8,), core=(4,), halo=(2,))
    left, right = plan.windows()
    np.testing.assert_array_equal(
        axis_weights(plan, left, axis=0, taper=2), np.array([1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8])
    )
    np.testing.assert_array_equal(
        axis_weights(plan, right, axis=0, taper=2), np.array([1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1])
    )


def test_windows_start_on_multiples_of_the_output_stride() -> None:
    plan = WindowPlan(shape=(100, 77), core=(32, 16), halo=(8, 24), stride=8)
    assert all(s.start % 8 == 0 for window in plan.windows() for s in window.read)
    with pytest.raises(ValueError, match="core .* multiples of the network's output stride 8"):
        WindowPlan(shape=(100, 77), core=(30, 16), halo=(8, 24), stride=8)
    with pytest.raises(ValueError, match="halo .* multiples of the network's output stride 8"):
        WindowPlan(shape=(100, 77), core=(32, 16), halo=(8, 20), stride=8)


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="one entry per axis"):
        WindowPlan(shape=(10, 10), core=(4,), halo=(0, 0))
    with pytest.raises(ValueError, match="must be positive"):
        WindowPlan(shape=(10,), core=(0,), halo=(0,))
    plan = WindowPlan(shape=(10,), core=(4,), halo=(2,))
    with pytest.raises(ValueError, match="needs a halo of at least"):
        check_taper(plan, 3)
    with pytest.raises(ValueError, match="needs a core of at least 6"):
        check_taper(WindowPlan(shape=(10,), core=(4,), halo=(3,)), 3)


@given(st.integers(1, 500), st.integers(1, 90))
def test_slabs_partition_the_rows_in_order(height: int, rows: int) -> None:
    pieces = slabs(height, rows=rows)
    covered = [row for piece in pieces for row in range(piece.rows.start, piece.rows.stop)]
    assert covered == list(range(height))
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    with pytest.raises(ValueError, match="at least one row"):
        slabs(height, rows=0)


@given(
    size=st.integers(1, 90), core=st.integers(1, 6), halo=st.integers(0, 12), stride=st.sampled_from([1, 4])
)
@settings(max_examples=200, deadline=None)
def test_windows_inside_see_every_core_with_its_halo_and_nothing_beyond(
    size: int, core: int, halo: int, stride: int
) -> None:
    end = -(-size // stride) * stride
    sizes = {"shape": (size,), "core": (min(core * stride, end),), "halo": (halo * stride,), "stride": stride}
    beyond = WindowPlan(**sizes)  # type: ignore[arg-type]
    for where in ("inside", "smaller"):
        plan = WindowPlan(**sizes, at_borders=where)  # type: ignore[arg-type]
        (length,) = plan.window_shape
        assert length % stride == 0
        assert length <= beyond.window_shape[0]
        reads = []
        for window, as_before in zip(plan.windows(), beyond.windows(), strict=True):
            (read,), (core_part,) = window.read, window.core
            assert core_part == as_before.core[0]
            assert read.stop - read.start == length
            assert read.start % stride == 0
            assert read.start <= max(core_part.start - halo * stride, 0)
            assert read.stop >= min(core_part.stop + halo * stride, size)
            if where == "smaller":
                assert 0 <= read.start <= read.stop <= end
            assert plan.first_read(window.index[0]) == read.start
            reads.append(read.start)
        assert reads == sorted(reads)


def test_two_windows_a_side_have_one_halo_each_and_one_has_none() -> None:
    def shape(*sides: int) -> tuple[int, ...]:
        core = tuple(min(16, n) for n in sides)
        return WindowPlan(shape=sides, core=core, halo=(4,) * len(sides), at_borders="smaller").window_shape

    assert shape(16, 17, 32, 33, 18) == (16, 17, 20, 24, 18)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((35, 50, 36), (32, 48, 32)), ((70, 41), (24, 40)), ((100,), (33,)), ((20, 90), (24, 24))],
)
def test_windows_of_patches_have_their_sides_lie_inside_and_are_mixed_over_their_whole_overlap(
    shape: tuple[int, ...], sides: tuple[int, ...]
) -> None:
    plan = plan_of_patches(shape, sides=sides)
    assert plan.window_shape == sides
    taper = min(plan.halo)
    check_taper(plan, taper)
    total = np.zeros(shape)
    for window in plan.windows():
        assert region_shape(window.read) == sides
        for part, size, side in zip(window.read, shape, sides, strict=True):
            assert (part.start >= 0 and part.stop <= size) or side > size
        place = footprint(plan, window, taper=taper)
        assert all(p.start >= r.start and p.stop <= r.stop for p, r in zip(place, window.read, strict=True))
        weights = np.ones(())
        for axis in range(len(shape)):
            weights = np.multiply.outer(weights, axis_weights(plan, window, axis=axis, taper=taper))
        total[place] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-6)
