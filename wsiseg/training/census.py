"""Where each class lies: counts on a coarse grid, from which a pixel of a class can be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.labels import Labels
from wsiseg.annotations.polygons import PolygonLabels
from wsiseg.classes import VOID
from wsiseg.geometry import Region
from wsiseg.windows import WindowPlan

CELLS = {2: 256, 3: 32}
"""Sides of a cell, pixels, by number of axes."""


@dataclass(frozen=True, eq=False)
class Census:
    """Counts of every class (cells, K) in cells that have a label, and where the cells lie."""

    places: tuple[Region, ...]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, num_classes: int) -> Self:
        """Of a case without labels."""
        return cls((), np.zeros((0, num_classes), np.int64))

    @property
    def total(self) -> NDArray[np.int64]:
        """Pixels of every class, (K,)."""
        return np.asarray(self.counts.sum(axis=0), np.int64)

    def draw_cell(self, index: int, rng: np.random.Generator) -> Region:
        """A cell, by how many pixels of a class it has."""
        share = self.counts[:, index] / self.counts[:, index].sum()
        return self.places[int(rng.choice(len(self.places), p=share))]


def take_census(labels: Labels, *, num_classes: int) -> Census:
    """Counts of labels read piece by piece. Raises AnnotationError for a class that is not known."""
    places, counts = [], []
    for region in _cells(labels.shape):
        if isinstance(labels, PolygonLabels) and not labels.touches(region):
            continue
        values = labels.read(region)
        found = np.bincount(values[values != VOID], minlength=num_classes)
        if found.any():
            places.append(region)
            counts.append(found)
    return Census(tuple(places), np.array(counts, np.int64).reshape(-1, num_classes))


def _cells(shape: tuple[int, ...]) -> Iterator[Region]:
    plan = WindowPlan(shape=shape, core=(CELLS[len(shape)],) * len(shape), halo=(0,) * len(shape))
    return (window.core for window in plan.windows())
