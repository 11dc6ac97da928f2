"""Drawn areas, in whatever format they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from wsiseg.errors import AnnotationError

Ring = NDArray[np.float64]
"""Corners (n, 2) as x, y, at least three; it is closed whether the first is repeated at the end or not."""
Parts = list[list[Ring]]
"""Polygons: of each the outside, then the holes."""

FARTHEST_PX = 1 << 31
"""Of a corner from the slide's: no scanner makes so many pixels a side by a factor of a thousand."""


@dataclass(frozen=True)
class Mark:
    """One annotated area and the name of its class, if it has one.

    `number` counts the elements of the file from 1 on; `line` is where it begins in an XML file.
    """

    number: int
    area: shapely.Geometry
    class_name: str | None
    line: int | None = None

    @property
    def place(self) -> str:
        """Where it stands in its file, for people."""
        return _place(self.number, self.line)


@dataclass(frozen=True)
class Outline:
    """What a reader has found: a mark whose area is not made yet."""

    number: int
    parts: Parts
    class_name: str | None
    line: int | None = None

    @property
    def place(self) -> str:
        """Where it stands in its file, for people."""
        return _place(self.number, self.line)


def _place(number: int, line: int | None) -> str:
    return f"feature {number}" if line is None else f"line {line}"


def encloses(ring: Ring) -> bool:
    """False of a ring with fewer than three corners, however it is closed."""
    if len(ring) < 3:
        return False
    x0, y0, x1, y1 = ring[0, 0], ring[0, 1], ring[-1, 0], ring[-1, 1]
    return len(ring) > 3 or x0 != x1 or y0 != y1


def make_marks(path: Path, outlines: Sequence[Outline]) -> list[Mark]:
    """Marks of outlines, whose rings all enclose something. Raises AnnotationError for a corner far off."""
    if not outlines:
        return []
    parts = [part for outline in outlines for part in outline.parts]
    rings = [ring for part in parts for ring in part]
    part_outline = np.repeat(np.arange(len(outlines)), [len(outline.parts) for outline in outlines])
    ring_part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    corner_ring = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    corners = np.concatenate(rings)
    far = np.flatnonzero(~(np.abs(corners) < FARTHEST_PX).all(axis=1))  # NaN is far too
    if far.size:
        outline, (x, y) = outlines[part_outline[ring_part[corner_ring[far[0]]]]], corners[far[0]]
        raise AnnotationError(f"{path}: {outline.place} has a corner at ({x:g}, {y:g}), on no slide")
    # All at once: a call for each of a hundred thousand polygons takes ten times as long.
    closed = np.asarray(shapely.linearrings(corners, indices=corner_ring))
    polygons = np.asarray(shapely.polygons(closed, indices=ring_part))
    first = np.searchsorted(part_outline, np.arange(len(outlines)))
    areas = polygons[first]
    several = np.bincount(part_outline) > 1
    if several.any():
        chosen = several[part_outline]
        number = np.cumsum(several) - 1
        areas[several] = shapely.multipolygons(polygons[chosen], indices=number[part_outline[chosen]])
    return [
        Mark(outline.number, area, outline.class_name, outline.line)
        for outline, area in zip(outlines, areas, strict=True)
    ]


def parts_of(area: shapely.Geometry) -> Parts:
    """The rings of the polygons in a geometry."""
    pieces = shapely.get_parts(shapely.get_parts(area))
    return [
        [shapely.get_coordinates(ring) for ring in (piece.exterior, *piece.interiors)]
        for piece in pieces
        if isinstance(piece, shapely.Polygon) and not piece.is_empty
    ]
