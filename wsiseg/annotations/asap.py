"""ASAP's XML: annotations in level-0 pixels, whose class is the group that they are part of.

ASAP draws no holes. What is left out of a region is drawn as an annotation of another group.
"""

from __future__ import annotations

from collections.abc import Iterator

from wsiseg.annotations.marks import Outline
from wsiseg.annotations.xmltext import Element, XmlError
from wsiseg.bounded import shown

ROOT = "ASAP_Annotations"
AREAS = frozenset({"Polygon", "Spline", "Rectangle"})
"""The corners of splines too are joined by straight lines."""
NO_AREAS = frozenset({"Dot", "PointSet", "Measurement"})
NO_GROUP = "None"


def asap_outlines(root: Element) -> Iterator[Outline]:
    """The areas of a file. Raises XmlError."""
    listed = (found for group in root.all("Annotations") for found in group.all("Annotation"))
    for number, found in enumerate(listed, start=1):
        kind, name = found.attribute("Type"), found.attribute("PartOfGroup")
        if kind in NO_AREAS:
            continue
        if kind not in AREAS:
            raise XmlError(found.line, f"<Annotation> has Type {shown(kind)}, which is none of ASAP's")
        corners = found.first("Coordinates")
        if corners is None:
            raise XmlError(found.line, "<Annotation> has no <Coordinates>")
        yield Outline(number, [[corners.ring]], None if name == NO_GROUP else name, found.line)
