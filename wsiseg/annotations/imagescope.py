"""Aperio ImageScope's XML, and HALO's, which has the same elements: layers of regions in level-0 pixels.

The class of a region is the name of its layer. A negative region is a hole in the regions of its layer,
except in those that lie in it: they are islands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import shapely

from wsiseg.annotations.marks import Outline, Ring, encloses, parts_of
from wsiseg.annotations.xmltext import Element, XmlError
from wsiseg.bounded import shown

ROOT = "Annotations"
POLYGONS = frozenset({None, "0", "Polygon"})
RECTANGLES = frozenset({"1", "Rectangle"})
ELLIPSES = frozenset({"2", "Ellipse"})
NO_AREAS = frozenset({"3", "4", "5", "Ruler", "Pin", "Arrow", "Line", "Polyline"})
YES, NO = frozenset({"1", "true", "True"}), frozenset({None, "0", "false", "False"})
ELLIPSE_CORNERS = 360
"""Of the polygon drawn for an ellipse: its area is 5e-5 too small."""


def imagescope_outlines(root: Element) -> Iterator[Outline]:
    """The areas of a file. Raises XmlError."""
    number = 0
    for layer in root.all("Annotation"):
        drawn: list[Outline] = []
        holes: list[Ring] = []
        for region in (found for group in layer.all("Regions") for found in group.all("Region")):
            number += 1
            ring = _ring(region)
            if ring is None:
                continue
            if not _is_negative(region):
                drawn.append(Outline(number, [[ring]], _name(layer, region), region.line))
            elif encloses(ring):
                holes.append(ring)
        yield from _with_holes(drawn, holes) if holes else drawn


def _name(layer: Element, region: Element) -> str | None:
    """Of the class: the layer's name, else its description, else the region's own text."""
    listed = (found for group in layer.all("Attributes") for found in group.all("Attribute"))
    described = next((a.attribute("Value") for a in listed if a.attribute("Name") == "Description"), None)
    return layer.attribute("Name") or described or region.attribute("Text")


def _is_negative(region: Element) -> bool:
    said = region.attribute("NegativeROA")
    if said not in YES | NO:
        raise XmlError(region.line, f"<Region> has NegativeROA {shown(said)}; it is 0 or 1")
    return said in YES


def _ring(region: Element) -> Ring | None:
    """The outline of a region; None of what has no area."""
    kind = region.attribute("Type")
    if kind in NO_AREAS:
        return None
    corners = region.first("Vertices")
    if corners is None:
        raise XmlError(region.line, "<Region> has no <Vertices>")
    ring = corners.ring
    if kind in POLYGONS or len(ring) == 0:
        return ring
    low, high = ring.min(axis=0), ring.max(axis=0)
    if kind in RECTANGLES:
        # Two corners are opposite ones.
        return np.array([low, (high[0], low[1]), high, (low[0], high[1])]) if len(ring) == 2 else ring
    if kind in ELLIPSES:
        if len(ring) not in (2, 4):
            return ring
        angles = np.arange(ELLIPSE_CORNERS) * (2 * np.pi / ELLIPSE_CORNERS)
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.asarray((low + high) / 2 + unit * (high - low) / 2)
    raise XmlError(region.line, f"<Region> has Type {shown(kind)}, which is none that is known")


def _with_holes(drawn: Sequence[Outline], holes: Sequence[Ring]) -> Iterator[Outline]:
    cuts = shapely.make_valid([shapely.Polygon(ring) for ring in holes])
    tree = shapely.STRtree(cuts)
    for outline in drawn:
        (outside,) = outline.parts[0]
        if not encloses(outside):
            yield outline
            continue
        area = shapely.make_valid(shapely.Polygon(outside))
        near = np.sort(tree.query(area, predicate="intersects"))
        near = near[~shapely.covered_by(area, cuts[near])]
        rings = [outside, *(holes[n] for n in near)]
        if shapely.Polygon(outside, rings[1:]).is_valid or not near.size:
            yield replace(outline, parts=[rings])  # the file's own corners
        else:
            rest = shapely.difference(area, shapely.union_all(cuts[near]))
            yield replace(outline, parts=parts_of(rest))
