"""QuPath GeoJSON: polygons in level-0 pixels (x, y), rasterised region by region.

A pixel belongs to a polygon if its centre lies inside; where polygons overlap, the later one in the
file counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import box, shape
from skimage.draw import polygon as fill_polygon

from wsiseg.annotations.labels import Indices
from wsiseg.classes import VOID, MaskClass, index_of_name
from wsiseg.errors import AnnotationError
from wsiseg.geometry import Region, region_shape


@dataclass(frozen=True)
class Mark:
    """One annotated area and the name of its class, if it has one."""

    number: int
    area: shapely.Geometry
    class_name: str | None


def read_marks(path: Path) -> list[Mark]:
    """The areas of a GeoJSON file; points and lines are passed over. Raises AnnotationError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise AnnotationError(f"cannot read the annotation {path}: {err.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise AnnotationError(f"{path} is not valid GeoJSON: {err}") from None
    features = data.get("features") if isinstance(data, Mapping) else data
    if isinstance(data, Mapping) and data.get("type") == "Feature":
        features = [data]
    if not isinstance(features, list):
        raise AnnotationError(f"{path} is not GeoJSON: it has no list of features")
    marks = [mark for n, f in enumerate(features, start=1) if (mark := _mark(path, n, f)) is not None]
    if not marks:
        raise AnnotationError(f"{path} has no polygons")
    return marks


def _mark(path: Path, number: int, feature: Any) -> Mark | None:
    try:
        geometry = shape(feature["geometry"])
        properties = feature.get("properties") or {}
        classification = properties.get("classification") or {}
        name = classification.get("name") if isinstance(classification, Mapping) else None
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError) as err:
        raise AnnotationError(f"{path}: feature {number} is not valid GeoJSON: {err}") from None
    if geometry.geom_type not in ("Polygon", "MultiPolygon") or geometry.is_empty:
        return None
    return Mark(number, shapely.make_valid(geometry), name)


class PolygonLabels:
    """Polygons as class indices on a (y, x) grid; VOID where there is none."""

    def __init__(self, marks: Sequence[Mark], values: Sequence[int], *, grid: tuple[int, ...]) -> None:
        self._areas = [mark.area for mark in marks]
        self._values = list(values)
        self._tree = shapely.STRtree(self._areas)
        self.shape = grid

    def touches(self, region: Region) -> bool:
        """True where a polygon comes within a pixel of a region; never False where it lies inside."""
        y, x = region
        frame = box(x.start - 1, y.start - 1, x.stop + 1, y.stop + 1)
        return len(self._tree.query(frame, predicate="intersects")) > 0

    def read(self, region: Region) -> Indices:
        out = np.full(region_shape(region), VOID, np.uint8)
        y, x = region
        frame = box(x.start - 1, y.start - 1, x.stop + 1, y.stop + 1)
        for number in sorted(self._tree.query(frame)):
            inside = _rasterise(shapely.intersection(self._areas[number], frame), region)
            out[inside] = self._values[number]
        return out


def _rasterise(area: shapely.Geometry, region: Region) -> NDArray[np.bool_]:
    """Pixels of a region whose centres lie inside an area."""
    size = region_shape(region)
    inside = np.zeros(size, bool)
    for part in shapely.get_parts(area):
        if part.geom_type != "Polygon":
            continue  # make_valid and clipping can leave lines and points behind
        for ring, value in [(part.exterior, True), *((r, False) for r in part.interiors)]:
            x, y = np.asarray(ring.coords)[:, :2].T
            # Centres lie at + 0.5; skimage takes centres at whole numbers.
            rows, columns = fill_polygon(y - region[0].start - 0.5, x - region[1].start - 0.5, size)
            inside[rows, columns] = value
    return inside


def polygon_truth(path: Path, *, classes: Sequence[MaskClass], grid: tuple[int, ...]) -> PolygonLabels:
    """Classed polygons as truth. Raises AnnotationError for a class that is not among `classes`."""
    marks = read_marks(path)
    values = []
    for mark in marks:
        if mark.class_name is None:
            raise AnnotationError(f"{path}: feature {mark.number} has no class; give it one or delete it")
        index = index_of_name(classes, mark.class_name)
        if index is None:
            known = ", ".join(c.name for c in classes)
            raise AnnotationError(
                f"{path}: feature {mark.number} has class {mark.class_name!r}, which the model does "
                f"not know; its classes are {known}"
            )
        values.append(index)
    return PolygonLabels(marks, values, grid=grid)


def polygon_region(path: Path, *, grid: tuple[int, ...]) -> PolygonLabels:
    """All polygons of a file as one region of interest: 1 inside, VOID outside."""
    marks = read_marks(path)
    return PolygonLabels(marks, [1] * len(marks), grid=grid)
