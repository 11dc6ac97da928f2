"""GeoJSON as QuPath writes it: features with a geometry, and the class in `properties.classification`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.annotations.marks import Outline, Parts, Ring, encloses
from wsiseg.bounded import in_short, parse_json, shown
from wsiseg.errors import AnnotationError

NO_AREAS = ("Point", "MultiPoint", "LineString", "MultiLineString")


def geojson_outlines(path: Path, text: str) -> list[Outline]:
    """The areas of a GeoJSON text; points, lines and empty polygons are passed over.

    Raises AnnotationError.
    """
    try:
        data = parse_json(text, hook=_compact)
    except ValueError as err:
        raise AnnotationError(f"{path} is not valid GeoJSON: {in_short(err)}") from None
    features = data.get("features") if isinstance(data, Mapping) else data
    if isinstance(data, Mapping) and data.get("type") == "Feature":
        features = [data]
    if not isinstance(features, list):
        raise AnnotationError(f"{path} is not GeoJSON: it has no list of features")
    outlines = []
    for number, feature in enumerate(features, start=1):
        try:
            parts, name = _parts(_member(feature, "geometry")), _class_name(feature)
        except (ValueError, RecursionError) as err:
            raise AnnotationError(f"{path}: feature {number} is not valid GeoJSON: {in_short(err)}") from None
        if parts:
            outlines.append(Outline(number, parts, name))
    return outlines


def _compact(found: dict[str, Any]) -> dict[str, Any]:
    """An object of the text with rings as arrays, and without measurements: a tenth of the memory."""
    found.pop("measurements", None)
    if found.get("type") in ("Polygon", "MultiPolygon") and "coordinates" in found:
        polygons = found["coordinates"]
        try:
            found["coordinates"] = _rings([polygons] if found["type"] == "Polygon" else polygons)
        except ValueError as err:
            found["coordinates"] = err  # told with the number of the feature, which nobody knows yet
    return found


def _rings(polygons: Any) -> Parts:
    if not isinstance(polygons, list) or not all(isinstance(rings, list) for rings in polygons):
        raise ValueError(f"its coordinates are {shown(polygons)}, which are no rings")
    return [[_ring(corners) for corners in rings] for rings in polygons if rings]


def _ring(corners: Any) -> Ring:
    try:
        ring = np.array(corners)
    except (ValueError, OverflowError, RecursionError):
        ring = np.array("")
    if ring.dtype.kind not in "iuf" or ring.ndim != 2 or not 2 <= ring.shape[1] <= 4:
        raise ValueError(f"it has a ring {shown(corners)}, which is no list of places [x, y]")
    ring = ring[:, :2].astype(np.float64)  # what comes after x and y is a height
    if not encloses(ring):
        raise ValueError(f"it has a ring {shown(corners)}, which has fewer than three corners")
    return ring


def _parts(geometry: Any) -> Parts:
    kind = _member(geometry, "type")
    if kind in NO_AREAS:
        return []
    if kind == "GeometryCollection":
        inner = _member(geometry, "geometries")
        if not isinstance(inner, list):
            raise ValueError(f"its geometries are {shown(inner)}, which is no list")
        return [part for one in inner for part in _parts(one)]
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"its geometry has type {shown(kind)}, which is none of GeoJSON")
    made = _member(geometry, "coordinates")
    if isinstance(made, ValueError):
        raise made
    return list(made)


def _member(found: Any, name: str) -> Any:
    if not isinstance(found, Mapping) or name not in found:
        raise ValueError(f"{shown(found)} has no {name}")
    return found[name]


def _class_name(feature: Mapping[str, Any]) -> str | None:
    properties = feature.get("properties") or {}
    if not isinstance(properties, Mapping):
        raise ValueError(f"its properties are {shown(properties)}")
    classification = properties.get("classification")
    if not isinstance(classification, Mapping):
        return None
    name = classification.get("name")
    names = classification.get("names")
    if name is None and isinstance(names, list) and all(isinstance(part, str) for part in names) and names:
        return ": ".join(names)  # of a class derived from others, as QuPath writes it since 0.5
    if name is not None and not isinstance(name, str):
        raise ValueError(f"it has class {shown(name)}, which is no name")
    return name
