"""What reviewers say of a mask: a verdict, and polygons of what it should have been.

    CASE.review.AB.geojson      beside CASE.ome.zarr: the layer of the reviewer with the initials AB

A layer is a GeoJSON that QuPath opens, in level-0 pixels (x, y); where polygons overlap, the later one
counts. Every change is stored at once and whole, under a lock that all processes of a machine respect, and
names the version of what it changes: what another window has changed meanwhile is not overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wsiseg.bounded import LARGEST_MARKS, in_short, parse_json, read_bounded
from wsiseg.classes import MaskClass
from wsiseg.errors import AnnotationError, UsageError
from wsiseg.files import to_json, write_whole, writing
from wsiseg.names import SUFFIX
from wsiseg.objects import ObjectPath
from wsiseg.store import CaseStore

INITIALS = re.compile(r"[A-Z0-9][A-Z0-9-]{0,7}")
"""Capitals: some file systems do not tell them from small letters."""
MOST_CORNERS = 100_000
"""Of a polygon that is drawn."""
MOST_COMMENT = 4000
Polygons = Sequence[Sequence[Sequence[Sequence[float]]]]
"""Areas: each an outline and its holes, each of these a list of corners (x, y)."""
Verdict = Literal["open", "accepted", "rejected", "needs work"]


class Outdated(Exception):
    """A change of what has been changed, or deleted, since it was read."""


class Review(BaseModel):
    """What a reviewer says of a whole mask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict = "open"
    comment: str = Field("", max_length=MOST_COMMENT)


class About(Review):
    """The member "wsiseg" of a layer: of what it is, and what was said."""

    case: str
    reviewer: str
    model: str | None = None
    plan: str = Field(description="identity of the mask's plan: of which mask this was said")
    version: int = Field(0, ge=0, description="raised by every change of the verdict or the comment")
    changed: str = ""


class Layer(BaseModel):
    """The layer of a reviewer."""

    model_config = ConfigDict(frozen=True)

    about: About
    features: tuple[dict[str, Any], ...] = ()

    def find(self, name: str) -> dict[str, Any] | None:
        """A polygon by its id, None where there is none."""
        return next((one for one in self.features if one.get("id") == name), None)

    @property
    def geojson(self) -> dict[str, Any]:
        """As it is stored and sent."""
        about = self.about.model_dump(mode="json")
        return {"type": "FeatureCollection", "wsiseg": about, "features": list(self.features)}


class Corrections:
    """The layers of all reviewers of a finished slide."""

    def __init__(self, store: CaseStore, *, model: str | None = None) -> None:
        if isinstance(store.path, ObjectPath):
            raise UsageError(f"{store.path} is an object; reviews lie beside a result on a disk")
        self._store, self._model = store, model
        self._case = store.path.name.removesuffix(SUFFIX)

    def path(self, initials: str) -> Path:
        """Where a reviewer's layer is. Raises UsageError for what are no initials."""
        if not INITIALS.fullmatch(initials):
            raise UsageError(f"{initials!r} are no initials: 1 to 8 capitals, digits or hyphens")
        return self._store.path.parent / f"{self._case}.review.{initials}.geojson"

    def reviewers(self) -> list[str]:
        """Initials of those who have a layer, in order."""
        start, end = f"{self._case}.review.", ".geojson"
        names = (p.name for p in self._store.path.parent.iterdir() if p.name.startswith(start))
        found = (name.removeprefix(start).removesuffix(end) for name in names if name.endswith(end))
        return sorted(name for name in found if INITIALS.fullmatch(name))

    def layer(self, initials: str) -> Layer:
        """A reviewer's layer as it is stored, empty where there is none. Raises AnnotationError."""
        path = self.path(initials)
        if not path.exists():
            about = About(
                case=self._case, reviewer=initials, model=self._model, plan=self._store.plan.identity
            )
            return Layer(about=about)
        try:
            data = parse_json(read_bounded(path, most=LARGEST_MARKS))
            return Layer(about=About(**data["wsiseg"]), features=tuple(data["features"]))
        except OSError as err:
            raise AnnotationError(f"cannot read {path}: {err.strerror}") from None
        except (ValueError, KeyError, TypeError, ValidationError) as err:
            raise AnnotationError(f"{path} is no layer of a review: {in_short(err)}") from None

    def layers(self) -> dict[str, Layer]:
        """All layers by initials."""
        return {initials: self.layer(initials) for initials in self.reviewers()}

    def say(self, initials: str, review: Review, *, version: int) -> Layer:
        """Store a verdict and a comment. Raises Outdated, StoreError."""
        with self._changing(initials) as layer:
            if layer.about.version != version:
                raise Outdated("the verdict was changed in another window")
            said = {**review.model_dump(), "version": version + 1, "changed": now()}
            # The mask may have been made anew since the layer was begun: this is said of the one of now.
            of = {"plan": self._store.plan.identity, "model": self._model}
            about = layer.about.model_copy(update={**said, **of})
            return self._written(initials, layer.model_copy(update={"about": about}))

    def draw(self, initials: str, name: str, polygons: Polygons, *, index: int, version: int) -> Layer:
        """Store an area under an id, new (version 0) or in the place of one that has this version.

        `polygons` are its parts, each an outline and its holes. Raises Outdated, UsageError, StoreError.
        """
        chosen = next((c for c in self._store.plan.classes if c.index == index), None)
        if chosen is None:
            raise UsageError(f"there is no class {index}")
        try:
            uuid.UUID(name)
        except ValueError:
            raise UsageError(f"{name!r} is no id of a polygon") from None
        geometry = area_of(polygons, shape=self._store.plan.shape)
        with self._changing(initials) as layer:
            check_version(layer.find(name), version)
            made = feature(name, geometry, chosen, reviewer=initials, version=version + 1, model=self._model)
            # In its old place, since of two that overlap the later one counts.
            kept = [made if one.get("id") == name else one for one in layer.features]
            features = (*kept, *([] if version else [made]))
            return self._written(initials, layer.model_copy(update={"features": features}))

    def remove(self, initials: str, name: str, *, version: int) -> Layer:
        """Delete a polygon of this version. Raises Outdated, StoreError."""
        with self._changing(initials) as layer:
            check_version(layer.find(name), version)
            features = tuple(one for one in layer.features if one.get("id") != name)
            return self._written(initials, layer.model_copy(update={"features": features}))

    @contextmanager
    def _changing(self, initials: str) -> Iterator[Layer]:
        """A reviewer's layer while nobody else can change it."""
        folder = self.path(initials).parent
        with writing(folder):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.layer(initials)
        finally:
            os.close(lock)

    def _written(self, initials: str, layer: Layer) -> Layer:
        path = self.path(initials)
        with writing(path):
            write_whole(path, to_json(layer.geojson))
        return layer


def check_version(known: Mapping[str, Any] | None, version: int) -> None:
    """Raises Outdated unless a polygon has a version; one that is not there has 0."""
    if known is None and version:
        raise Outdated("the polygon was deleted in another window")
    if known is not None and known["properties"]["wsiseg"]["version"] != version:
        raise Outdated("the polygon was changed in another window")


def feature(
    name: str,
    geometry: shapely.Geometry,
    chosen: MaskClass,
    *,
    reviewer: str,
    version: int,
    model: str | None,
) -> dict[str, Any]:
    """A polygon as QuPath writes it, with who drew it, when, and over which model's mask."""
    return {
        "type": "Feature",
        "id": name,
        "geometry": json.loads(shapely.to_geojson(geometry)),
        "properties": {
            "objectType": "annotation",
            "classification": {"name": chosen.name, "color": list(chosen.color)},
            "wsiseg": {"reviewer": reviewer, "time": now(), "model": model, "version": version},
        },
    }


def area_of(polygons: Polygons, *, shape: Sequence[int]) -> shapely.Polygon | shapely.MultiPolygon:
    """The valid area of some polygons, cut at the borders of a slide (y, x).

    An outline that crosses itself becomes the areas that it goes round. Raises UsageError.
    """
    try:
        corners = [[np.asarray(ring, np.float64) for ring in rings] for rings in polygons]
    except (ValueError, TypeError):
        raise UsageError("a polygon is a list of rings of corners (x, y)") from None
    rings = [ring for part in corners for ring in part]
    if not all(corners) or any(ring.ndim != 2 or ring.shape[1:] != (2,) or len(ring) < 3 for ring in rings):
        raise UsageError("a polygon needs three corners (x, y) or more in every ring")
    if sum(map(len, rings)) > MOST_CORNERS:
        raise UsageError(f"a polygon has more than {MOST_CORNERS:,} corners")
    if not all(np.isfinite(ring).all() for ring in rings):
        raise UsageError("a corner of a polygon is no number")
    valid = [shapely.make_valid(shapely.Polygon(outline, holes)) for outline, *holes in corners]
    inside = shapely.intersection(shapely.union_all(valid), shapely.box(0, 0, shape[1], shape[0]))
    parts = shapely.get_parts(shapely.get_parts(inside))  # a collection may hold several polygons as one
    areas = [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
    if not areas:
        raise UsageError("the polygon has no area on the slide")
    return areas[0] if len(areas) == 1 else shapely.MultiPolygon(areas)


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
