"""Surface distances are those of hand-made cases, of all pairs of voxels, and of MONAI."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.surface import SurfaceDistances, surface, surface_distances

Mask = NDArray[np.bool_]


def blobs(shape: tuple[int, ...], *, seed: int, share: float = 0.4) -> Mask:
    """Smoothed noise above its quantile: some connected pieces with holes and bays."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.0)
    return np.asarray(noise > np.quantile(noise, 1 - share))


def brute_surface(mask: Mask) -> list[tuple[int, ...]]:
    """Voxels with a face neighbour that is not in the mask, one voxel after the other."""
    inside = set(itertools.product(*map(range, mask.shape))) & {tuple(p) for p in np.argwhere(mask).tolist()}
    steps = [tuple(s * (a == b) for b in range(mask.ndim)) for a in range(mask.ndim) for s in (-1, 1)]
    return sorted(p for p in inside if any(tuple(np.add(p, step).tolist()) not in inside for step in steps))


def brute_distances(truth: Mask, prediction: Mask, spacing: tuple[float, ...]) -> SurfaceDistances:
    """Distances of every surface voxel to every other one."""
    a, b = (np.array(brute_surface(m)) * spacing for m in (truth, prediction))
    pairs = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1))
    forth, back = pairs.min(axis=1), pairs.min(axis=0)
    return SurfaceDistances(
        hausdorff_95=max(float(np.percentile(forth, 95)), float(np.percentile(back, 95))),
        average=float(np.concatenate([forth, back]).mean()),
    )


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Mask, Mask, tuple[float, ...]]:
    """Two masks with something in each, of one shape in 1 to 3 dimensions, and a spacing."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    spacing = tuple(draw(st.sampled_from([0.3, 0.7, 1.0, 2.5])) for _ in shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth, prediction = (rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9])) for _ in range(2))
    for mask in (truth, prediction):
        mask.flat[rng.integers(mask.size)] = True
    return truth, prediction, spacing


def test_the_surface_of_a_cube_is_its_shell() -> None:
    cube = np.zeros((7, 8, 9), np.bool_)
    cube[1:6, 2:7, 3:8] = True
    shell = cube.copy()
    shell[2:5, 3:6, 4:7] = False
    np.testing.assert_array_equal(surface(cube), shell)
    assert surface(cube).sum() == 5**3 - 3**3


def test_the_border_of_the_image_is_outside() -> None:
    full = np.ones((3, 4, 5), np.bool_)
    shell = full.copy()
    shell[1, 1:3, 1:4] = False
    np.testing.assert_array_equal(surface(full), shell)
    assert full.all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cube_and_its_copy_two_voxels_on_have_the_distances_counted_by_hand(axis: int) -> None:
    # Of the 8^3 cube's 296 surface voxels 64 (the face in front) and 36 (the other face without its rim)
    # are 2 voxels from the copy's surface, a ring of 28 is 1 voxel from it, all others lie on it: one voxel
    # along the other axes is longer than the shift.
    truth, prediction = (np.zeros((13, 13, 13), np.bool_) for _ in range(2))
    truth[2:10, 2:10, 2:10] = True
    prediction[2:10, 2:10, 2:10] = True
    prediction = np.roll(prediction, 2, axis=axis)
    spacing = [4.0, 5.0, 6.0]
    spacing[axis] = 1.5
    found = surface_distances(truth, prediction, spacing=tuple(spacing))
    assert found.hausdorff_95 == pytest.approx(3.0, abs=1e-12)
    assert found.average == pytest.approx((100 * 3.0 + 28 * 1.5) / 296, abs=1e-12)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_two_plates_are_as_far_apart_as_they_were_moved(shift: int) -> None:
    truth, prediction = (np.zeros((8, 5, 6), np.bool_) for _ in range(2))
    truth[2], prediction[2 + shift] = True, True
    found = surface_distances(truth, prediction, spacing=(2.5, 0.1, 0.3))
    assert found == SurfaceDistances(hausdorff_95=2.5 * shift, average=2.5 * shift)


def test_two_voxels_are_as_far_apart_as_their_centres() -> None:
    truth, prediction = (np.zeros((3, 4, 5), np.bool_) for _ in range(2))
    truth[0, 0, 0], prediction[1, 2, 3] = True, True
    found = surface_distances(truth, prediction, spacing=(2.0, 0.7, 0.5))
    assert found.hausdorff_95 == pytest.approx(math.sqrt(2.0**2 + 1.4**2 + 1.5**2))
    assert found.average == found.hausdorff_95


def test_the_larger_directed_percentile_counts_and_all_voxels_have_one_weight() -> None:
    truth, prediction = (np.zeros((3, 21), np.bool_) for _ in range(2))
    truth[1, 0], prediction[1] = True, True
    # From the voxel to the line 0; from the line 0, 0.5, ... 10, of which 9.5 is the 95th percentile.
    expected = SurfaceDistances(hausdorff_95=9.5, average=105 / 22)
    assert surface_distances(truth, prediction, spacing=(3.0, 0.5)) == expected
    assert surface_distances(prediction, truth, spacing=(3.0, 0.5)) == expected


@given(mask_pairs())
@settings(max_examples=60, deadline=None)
def test_surfaces_and_distances_are_those_of_all_pairs_of_voxels(
    case: tuple[Mask, Mask, tuple[float, ...]],
) -> None:
    truth, prediction, spacing = case
    assert sorted(tuple(p) for p in np.argwhere(surface(truth)).tolist()) == brute_surface(truth)
    found = surface_distances(truth, prediction, spacing=spacing)
    expected = brute_distances(truth, prediction, spacing)
    assert found.hausdorff_95 == pytest.approx(expected.hausdorff_95, abs=1e-9)
    assert found.average == pytest.approx(expected.average, abs=1e-9)
    back = surface_distances(prediction, truth, spacing=spacing)
    assert (back.hausdorff_95, back.average) == pytest.approx((found.hausdorff_95, found.average), abs=1e-12)


@given(mask_pairs(), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_what_surrounds_the_masks_does_not_matter(
    case: tuple[Mask, Mask, tuple[float, ...]], before: int, after: int
) -> None:
    truth, prediction, spacing = case
    alone = surface_distances(truth, prediction, spacing=spacing)
    within = surface_distances(
        np.pad(truth, (before, after)), np.pad(prediction, (before, after)), spacing=spacing
    )
    assert within == alone


@given(mask_pairs())
@settings(max_examples=20, deadline=None)
def test_a_mask_is_at_no_distance_from_itself(case: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    mask, _, spacing = case
    assert surface_distances(mask, mask, spacing=spacing) == SurfaceDistances(hausdorff_95=0.0, average=0.0)


# MONAI 1.6 warns of an argument that it passes to itself.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("shape", [(30, 22), (12, 18, 15)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_distances_are_those_of_monai(shape: tuple[int, ...], seed: int) -> None:
    truth, prediction = blobs(shape, seed=seed), blobs(shape, seed=seed + 10, share=0.3)
    spacing = (2.5, 0.7, 1.3)[: len(shape)]
    a, b = (torch.from_numpy(m)[None, None].float() for m in (truth, prediction))
    hausdorff = compute_hausdorff_distance(b, a, include_background=True, percentile=95, spacing=spacing)
    average = compute_average_surface_distance(b, a, include_background=True, symmetric=True, spacing=spacing)
    found = surface_distances(truth, prediction, spacing=spacing)
    assert found.hausdorff_95 == pytest.approx(hausdorff.item(), rel=1e-6)
    assert found.average == pytest.approx(average.item(), rel=1e-6)


@pytest.mark.parametrize("filled", [(False, False), (True, False), (False, True)])
def test_without_two_surfaces_there_is_no_distance(filled: tuple[bool, bool]) -> None:
    truth, prediction = (np.full((3, 4, 5), value) for value in filled)
    found = surface_distances(truth, prediction, spacing=(1.0, 1.0, 1.0))
    assert found == SurfaceDistances(hausdorff_95=None, average=None)


def test_memory_follows_the_masks_and_not_the_array() -> None:
    truth, prediction = (np.zeros((160, 160, 160), np.bool_) for _ in range(2))
    truth[70:80, 70:80, 70:80], prediction[72:80, 70:80, 70:80] = True, True
    tracemalloc.start()
    surface_distances(truth, prediction, spacing=(1.0, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < truth.nbytes / 10


def test_masks_and_spacings_that_do_not_fit_are_refused() -> None:
    mask = np.ones((2, 3), np.bool_)
    with pytest.raises(ValueError, match=r"truth \(2, 3\) and prediction \(3, 2\) differ in shape"):
        surface_distances(mask, mask.T, spacing=(1.0, 1.0))
    with pytest.raises(ValueError, match="prediction must be a mask of bool, not of uint8"):
        surface_distances(mask, mask.astype(np.uint8), spacing=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"spacing \(1.0,\) needs one entry per axis of \(2, 3\)"):
        surface_distances(mask, mask, spacing=(1.0,))
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be finite and positive"):
            surface_distances(mask, mask, spacing=(1.0, wrong))
