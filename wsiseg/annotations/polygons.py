"""Drawn areas on a pixel grid: polygons in level-0 pixels (x, y), rasterised region by region.

A pixel belongs to a polygon if its centre lies inside; where polygons overlap, the later one in the
file counts, or the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import box

from wsiseg.annotations.frames import placed
from wsiseg.annotations.labels import Indices
from wsiseg.annotations.marks import Mark
from wsiseg.annotations.names import LEFT_OUT, values_of
from wsiseg.annotations.reading import read_mark_file
from wsiseg.classes import VOID, MaskClass, index_of_name
from wsiseg.config import DRAWN, AnnotationRules
from wsiseg.errors import AnnotationError
from wsiseg.geometry import Region, region_shape, relative_to

BACKGROUND = "background"
MOST_CROSSINGS = 1_000_000_000
"""Rows of pixels that all outlines of a file run through: 5000 of them as high as the highest slide."""
CROSSINGS_AT_ONCE = 1 << 22


class PolygonLabels:
    """Polygons as class indices on a (y, x) grid, `outside` where there is none; later ones lie on top."""

    def __init__(
        self, marks: Sequence[Mark], values: Sequence[int], *, grid: tuple[int, ...], outside: int = VOID
    ) -> None:
        self._areas = np.array([mark.area for mark in marks], object)
        self._outside = outside
        self._bounds = shapely.bounds(self._areas)
        self._outlines = shapely.boundary(self._areas)
        self._values = list(values)
        self._tree = shapely.STRtree(self._areas)
        self.shape = grid

    def touches(self, region: Region) -> bool:
        """True where a polygon comes within a pixel of a region; never False where it states something."""
        if self._outside != VOID:
            return True
        y, x = region
        frame = box(x.start - 1, y.start - 1, x.stop + 1, y.stop + 1)
        near = self._tree.query(frame)
        if shapely.intersects(self._outlines[near], frame).any():
            return True
        # Where no outline comes near, one pixel is as good as all.
        pixel = (slice(y.start, y.start + 1), slice(x.start, x.start + 1))
        return any(_rasterise(self._areas[number], pixel).any() for number in near)

    def read(self, region: Region) -> Indices:
        out = np.full(region_shape(region), self._outside, np.uint8)
        y, x = region
        frame = box(x.start - 1, y.start - 1, x.stop + 1, y.stop + 1)
        for number in sorted(self._tree.query(frame)):
            # Only where it lies: of a hundred thousand cells each has a few pixels.
            part = _around(self._bounds[number], region)
            inside = _rasterise(self._areas[number], part)
            out[relative_to(part, region)][inside] = self._values[number]
        return out


def _around(bounds: NDArray[np.float64], region: Region) -> Region:
    """The part of a region with all pixels that something of `bounds` (x0, y0, x1, y1) may hold."""
    low, high = np.floor(bounds[1::-1]), np.ceil(bounds[:1:-1])
    return tuple(
        slice(int(np.clip(a, s.start, s.stop)), int(np.clip(b, s.start, s.stop)))
        for a, b, s in zip(low, high, region, strict=True)
    )


def _rasterise(area: shapely.Geometry, region: Region) -> NDArray[np.bool_]:
    """Pixels of a region whose centres lie inside an area: those right of an odd number of edges.

    Each crossing is computed from the file's own corners, so that a piece equals the piece of the whole
    and, of two areas with an edge in common, each pixel belongs to one. An outline may cross itself: what
    it goes round an even number of times is outside.
    """
    (y, x), (height, width) = region, region_shape(region)
    crossings = np.zeros((height, width + 1), np.int64)
    parts = shapely.get_parts(shapely.get_parts(area))
    for ring in shapely.get_rings(parts[shapely.get_type_id(parts) == 3]):
        corners = shapely.get_coordinates(ring)
        upward = (corners[:-1, 1] <= corners[1:, 1])[:, None]
        x0, y0 = np.where(upward, corners[:-1], corners[1:]).T
        x1, y1 = np.where(upward, corners[1:], corners[:-1]).T
        first = np.clip(np.ceil(y0 - 0.5), y.start, y.stop).astype(np.int64)
        count = np.clip(np.ceil(y1 - 0.5), y.start, y.stop).astype(np.int64) - first
        end = np.cumsum(count)
        for part in _in_parts(end):
            edge = np.repeat(np.arange(part.start, part.stop), count[part])
            row = first[edge] + np.arange(len(edge)) - (end - count)[edge] + (end - count)[part.start]
            place = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
            column = np.clip(np.ceil(place - 0.5), x.start, x.stop).astype(np.int64) - x.start
            np.add.at(crossings, (row - y.start, column), 1)
    return np.asarray(np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1)


def _in_parts(end: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of edges with about CROSSINGS_AT_ONCE crossings each; `end` counts them up to each edge."""
    start = 0
    while start < len(end):
        before = end[start - 1] if start else 0
        stop = int(np.searchsorted(end, before + CROSSINGS_AT_ONCE, side="right"))
        yield slice(start, start := max(stop, start + 1))


def _check_crossings(path: Path, marks: Sequence[Mark], *, rows: int) -> None:
    """Raises AnnotationError where outlines run through more rows than can be followed."""
    rings = shapely.get_rings(shapely.get_parts([mark.area for mark in marks]))
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    heights = np.abs(np.diff(np.clip(corners[:, 1], 0, rows)))
    total = float(heights[ring[1:] == ring[:-1]].sum())
    if total > MOST_CROSSINGS:
        raise AnnotationError(
            f"{path} has outlines that run up and down through {total:.3g} rows of pixels in all; "
            f"{MOST_CROSSINGS:.0e} are followed: take out what is no outline"
        )


def polygon_truth(
    path: Path,
    *,
    classes: Sequence[MaskClass],
    grid: tuple[int, ...],
    spacing: tuple[float, ...] | None = None,
    rules: AnnotationRules = DRAWN,
    slide: Path | None = None,
) -> PolygonLabels:
    """Classed polygons as truth on a (y, x) grid of pixels of `spacing` µm; `slide` is what was drawn on.

    Raises AnnotationError for a class that is not among `classes`, UsageError for a table of other classes.
    """
    marks = placed(read_mark_file(path), path=path, rules=rules, spacing=spacing, slide=slide)
    _check_crossings(path, marks, rows=grid[0])
    values = values_of(marks, classes=classes, table=rules.class_names, path=path)
    drawn = [(mark, value) for mark, value in zip(marks, values, strict=True) if value != LEFT_OUT]
    if rules.annotation_overlap == "smaller":
        sizes = _sizes([mark for mark, _ in drawn])
        drawn = [drawn[n] for n in np.argsort(-sizes, kind="stable")]
    outside = VOID
    if rules.unannotated == "background":
        background = index_of_name(classes, BACKGROUND)
        if background is None:
            raise AnnotationError(f"unannotated areas should be {BACKGROUND}, a class that the model has not")
        outside = background
    return PolygonLabels(*zip(*drawn, strict=True) if drawn else ((), ()), grid=grid, outside=outside)


def _sizes(marks: Sequence[Mark]) -> NDArray[np.float64]:
    """Areas in pixels."""
    areas = np.array([mark.area for mark in marks], object)
    # Of an outline that crosses itself the two sides would count against each other.
    crossed = ~shapely.is_valid(areas)
    areas[crossed] = shapely.make_valid(areas[crossed])
    return np.asarray(shapely.area(areas))


def _drawn(path: Path, *, grid: tuple[int, ...], slide: Path | None) -> list[Mark]:
    marks = placed(read_mark_file(path), path=path, rules=DRAWN, slide=slide)
    _check_crossings(path, marks, rows=grid[0])
    return marks


def polygon_region(path: Path, *, grid: tuple[int, ...], slide: Path | None = None) -> PolygonLabels:
    """All polygons of a file as one region of interest: 1 inside, VOID outside. Raises AnnotationError."""
    marks = _drawn(path, grid=grid, slide=slide)
    return PolygonLabels(marks, [1] * len(marks), grid=grid)


def polygon_regions(path: Path, *, grid: tuple[int, ...]) -> list[tuple[Mark, PolygonLabels]]:
    """Each polygon of a file as a region of its own: 1 inside, VOID outside. Raises AnnotationError."""
    if len(grid) != 2:
        raise AnnotationError(f"{path} holds polygons, which belong to slides; the mask is a volume")
    return [(mark, PolygonLabels([mark], [1], grid=grid)) for mark in _drawn(path, grid=grid, slide=None)]
