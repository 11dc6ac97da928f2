"""How far apart the surfaces of two masks lie, in physical units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in the unit of the spacing; both None where one of the masks is empty.

    `hausdorff_95` is the larger of the two directed 95th percentiles (interpolated linearly);
    `average` the mean over all surface voxels of both masks of the distance to the other surface.
    """

    hausdorff_95: float | None
    average: float | None


def surface(mask: Mask) -> Mask:
    """Voxels of the mask with a face neighbour outside it; what lies beyond the array is outside."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        # Views with this axis first: a voxel is inside only where both of its neighbours are.
        ours, theirs = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        ours[1:] &= theirs[:-1]
        ours[:-1] &= theirs[1:]
        ours[0] = ours[-1] = False
    return np.logical_xor(mask, inside, out=inside)


def surface_distances(truth: Mask, prediction: Mask, *, spacing: Sequence[float]) -> SurfaceDistances:
    """95 % Hausdorff and average symmetric surface distance of two masks of one shape, any number of axes.

    Distances run between centres of surface voxels, so a mask and its copy moved by one voxel are a
    spacing apart. Where a mask is empty they are undefined. Memory: 3 bytes per voxel of the box round both
    masks, however large the array, and about 100 per voxel of their surfaces. Raises ValueError.
    """
    _check(truth, prediction, spacing)
    if not (truth.any() and prediction.any()):
        return SurfaceDistances(hausdorff_95=None, average=None)
    # What lies outside the box belongs to neither mask, as beyond the border of an image: no margin needed.
    box = _joint_box(truth, prediction)
    surfaces = surface(truth[box]), surface(prediction[box])
    forth = _distances(surfaces[0], to=surfaces[1], spacing=spacing)
    back = _distances(surfaces[1], to=surfaces[0], spacing=spacing)
    return SurfaceDistances(
        hausdorff_95=max(float(np.percentile(directed, 95)) for directed in (forth, back)),
        average=float((forth.sum() + back.sum()) / (forth.size + back.size)),
    )


def _check(truth: Mask, prediction: Mask, spacing: Sequence[float]) -> None:
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask.dtype != np.bool_:
            raise ValueError(f"{name} must be a mask of bool, not of {mask.dtype}")
    if len(spacing) != truth.ndim:
        raise ValueError(f"spacing {tuple(spacing)} needs one entry per axis of {truth.shape}")
    if any(not (math.isfinite(s) and s > 0) for s in spacing):
        raise ValueError(f"spacing {tuple(spacing)} must be finite and positive")


def _joint_box(*masks: Mask) -> tuple[slice, ...]:
    """The smallest box that holds every mask; at least one of them is not empty."""
    box = []
    for axis in range(masks[0].ndim):
        others = tuple(a for a in range(masks[0].ndim) if a != axis)
        (used,) = np.logical_or.reduce([mask.any(axis=others) for mask in masks]).nonzero()
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _distances(start: Mask, *, to: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Distance (N,) from each voxel of `start` to the nearest one of `to`."""
    from scipy.spatial import KDTree

    # Surfaces are thin: a tree of their voxels is smaller and faster than distances at every voxel.
    tree = KDTree(np.argwhere(to) * np.asarray(spacing, np.float64))
    distances, _ = tree.query(np.argwhere(start) * np.asarray(spacing, np.float64))
    return np.asarray(distances, np.float64)
