"""Hamamatsu's NDPA: marks in nanometres from the centre of the glass, whose class is their title."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wsiseg.annotations.marks import Outline, Ring
from wsiseg.annotations.xmltext import Element, XmlError
from wsiseg.bounded import shown

ROOT = "annotations"
NANOMETRES = "nanometers"
NO_AREAS = frozenset({"pin", "pointer", "linearmeasure", "bookmark"})
CIRCLE_CORNERS = 360
"""Of the polygon drawn for a circle: its area is 5e-5 too small."""


def ndpa_outlines(root: Element) -> Iterator[Outline]:
    """The areas of a file, x to the right and y downwards. Raises XmlError."""
    for number, view in enumerate(root.all("ndpviewstate"), start=1):
        found = view.first("annotation")
        if found is None:
            continue  # a place to go back to
        unit = view.value("coordformat")
        if unit not in (None, NANOMETRES):
            raise XmlError(view.line, f"<ndpviewstate> has coordformat {shown(unit)}; {NANOMETRES} are read")
        ring = _ring(found)
        if ring is not None:
            yield Outline(number, [[ring]], view.value("title"), view.line)


def _ring(found: Element) -> Ring | None:
    """The outline of an annotation; None of what has no area."""
    kind = (found.attribute("type") or "").lower()
    if kind in NO_AREAS or found.value("closed") == "0":
        return None
    if kind == "circle":
        angles = np.arange(CIRCLE_CORNERS) * (2 * np.pi / CIRCLE_CORNERS)
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.asarray([found.number("x"), found.number("y")] + unit * found.number("radius"))
    if kind not in ("freehand", "rectangle"):
        raise XmlError(found.line, f"<annotation> has type {shown(kind)}, which is none that is known")
    corners = found.first("pointlist")
    if corners is None:
        raise XmlError(found.line, "<annotation> has no <pointlist>")
    return corners.ring
