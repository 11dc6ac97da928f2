"""Where in a case a patch lies, and the pixels there: n axes, one matrix for flips, turns and zoom."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wsiseg.annotations.labels import Indices
from wsiseg.geometry import Region
from wsiseg.sources.base import Array
from wsiseg.training.cases import Case
from wsiseg.training.sections import Augmentation

Matrix = NDArray[np.float64]
"""Leads from an offset of a patch's centre to one in the case, (n, n), pixels."""


def draw_matrix(how: Augmentation, axes: str, rng: np.random.Generator) -> Matrix:
    """Mirrored, turned and zoomed at random."""
    matrix = np.diag([rng.choice([-1.0, 1.0]) if axis in how.flip else 1.0 for axis in axes])
    planes = list(itertools.combinations(range(len(axes)), 2))
    if how.quarter_turns:
        matrix = matrix @ np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), int(rng.integers(4)))
    if rng.random() >= how.warped:
        return matrix
    if how.rotation_deg:
        for (a, b), angle in zip(
            planes, np.radians(rng.uniform(-1, 1, len(planes)) * how.rotation_deg), strict=True
        ):
            plane = np.eye(len(axes))
            plane[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            matrix = matrix @ plane
    smallest, largest = np.log(how.zoom)
    zoom = np.exp(rng.uniform(smallest, largest, size=len(axes) if how.zoom_each_axis else 1))
    return np.asarray(matrix / zoom)


def anywhere(shape: tuple[int, ...], extent: NDArray[np.float64], rng: np.random.Generator) -> Matrix:
    """Centre of a patch of some extent: inside a case, or round it where the case is smaller."""
    room = np.array(shape) - np.round(extent).astype(int)
    starts = rng.integers(np.minimum(room, 0), np.maximum(room, 0) + 1)
    return np.asarray(starts + np.round(extent) / 2)


def on_a_pixel(case: Case, index: int, rng: np.random.Generator) -> Matrix:
    """Centre of a pixel of a class; every one of the case has the same chance."""
    cell = case.census.draw_cell(index, rng)
    truth = case.truth(cell)
    found = np.argwhere(truth == index)
    return np.asarray([s.start for s in cell] + found[int(rng.integers(len(found)))] + 0.5)


def cut(case: Case, centre: Matrix, matrix: Matrix, size: tuple[int, ...]) -> tuple[Array, Indices]:
    """Pixels (C, *size) and truth (*size) of a patch; where pixels fall on pixels they are copied."""
    extent = np.abs(matrix) @ np.array(size)
    if np.isin(matrix, (-1.0, 0.0, 1.0)).all():
        first = np.round(centre - extent / 2).astype(int)
        ends = zip(first, extent.astype(int), strict=True)
        return _turned(*case.read(tuple(slice(int(a), int(a + n)) for a, n in ends)), matrix)
    first = np.floor(centre - extent / 2).astype(int) - 1
    last = np.ceil(centre + extent / 2).astype(int) + 1
    region = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return _sampled(case, region, centre - first, matrix, size)


def _turned(values: Array, truth: Indices, matrix: Matrix) -> tuple[Array, Indices]:
    """A patch whose matrix swaps and mirrors axes."""
    order = np.abs(matrix).argmax(axis=0)  # the axis of the case along each one of the patch
    signs = tuple(slice(None, None, int(matrix[a, b])) for b, a in enumerate(order))
    return (
        values.transpose(0, *(1 + order))[(slice(None), *signs)],
        truth.transpose(order)[signs],
    )


def _sampled(
    case: Case, region: Region, centre: Matrix, matrix: Matrix, size: tuple[int, ...]
) -> tuple[Array, Indices]:
    """A patch mixed from a region, linear for pixels and nearest for truth; `centre` lies in the region."""
    values, truth = case.read(region)
    lengths = np.array(truth.shape)
    # torch counts from -1 to 1 over a grid, and in the order x, y, z.
    turn = (matrix * (np.array(size) / lengths[:, None]))[::-1, ::-1]
    move = (2 * centre / lengths - 1)[::-1]
    theta = torch.from_numpy(np.column_stack([turn, move])).float()[None]
    grid = functional.affine_grid(theta, [1, 1, *size], align_corners=False)
    image = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None]
    marks = torch.from_numpy(truth.astype(np.float32))[None, None]
    image = functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    marks = functional.grid_sample(marks, grid, mode="nearest", padding_mode="border", align_corners=False)
    made = image[0].numpy()
    if values.dtype == np.uint8:
        made = np.round(made).astype(np.uint8)
    return made, marks[0, 0].numpy().astype(np.uint8)
