"""XML of annotations, parsed within bounds and with the line of everything.

Nothing that a document type could declare is read: entities are the way to make a short text take more memory
than there is, or to have other files read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

import numpy as np

from wsiseg.annotations.marks import Ring
from wsiseg.bounded import in_short, shown

MOST_ELEMENTS = 4_000_000
"""Of a file, corners apart: each takes some 300 bytes of memory, however short it is written."""
MOST_DEPTH = 64
CORNERS = frozenset({"Vertex", "V", "Coordinate"})
"""Elements with X and Y: of ImageScope, of HALO, of ASAP."""
TEXTS = frozenset({"title", "coordformat", "closed", "x", "y", "radius"})
"""Elements of NDPA whose text is read."""
LONGEST_TEXT = 10_000


class XmlError(ValueError):
    """A mistake in an XML text; its message begins with the line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")


@dataclass(slots=True, eq=False)
class Element:
    """An element with what stands in it; of corners there are the numbers only."""

    tag: str
    attributes: dict[str, str]
    line: int
    children: list[Element] = field(default_factory=list)
    text: str = ""
    corners: array[float] = field(default_factory=lambda: array("d"))
    """Order, x and y of each corner, one after the other."""

    def all(self, tag: str) -> Iterator[Element]:
        """The children of a name."""
        return (child for child in self.children if child.tag == tag)

    def first(self, tag: str) -> Element | None:
        """The first child of a name."""
        return next(self.all(tag), None)

    def attribute(self, name: str) -> str | None:
        """An attribute without the space round it; None where it is empty or not there."""
        return self.attributes.get(name, "").strip() or None

    def value(self, tag: str) -> str | None:
        """The text of the first child of a name; None where it is empty or not there."""
        child = self.first(tag)
        return (child.text.strip() or None) if child is not None else None

    def number(self, tag: str) -> float:
        """The number in the first child of a name. Raises XmlError."""
        return _number(self.value(tag), name=tag, tag=self.tag, line=self.line)

    @property
    def ring(self) -> Ring:
        """The corners (n, 2) as x, y, in their order."""
        found = np.frombuffer(self.corners, np.float64).reshape(-1, 3)
        return np.array(found[np.argsort(found[:, 0], kind="stable"), 1:])


def parse_xml(data: bytes) -> Element:
    """The root of an XML text. Raises XmlError."""
    parser = expat.ParserCreate()
    parser.buffer_text = True
    builder = _Builder(parser)
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.characters
    parser.StartDoctypeDeclHandler = builder.doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as err:
        raise XmlError(err.lineno, f"it is not valid XML: {expat.ErrorString(err.code)}") from None
    except XmlError:
        raise
    except (LookupError, ValueError) as err:  # an encoding that nobody knows
        raise XmlError(1, f"it is not valid XML: {in_short(err)}") from None
    return builder.root.children[0]


class _Builder:
    def __init__(self, parser: expat.XMLParserType) -> None:
        self._parser = parser
        self.root = Element("", {}, 0)
        self._open = [self.root]
        self._count = 0
        self._in_corner = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        line = self._parser.CurrentLineNumber
        if tag in CORNERS:
            self._in_corner += 1
            corners = self._open[-1].corners
            order = attributes.get("Order", str(len(corners)))
            corners.append(_number(order, name="Order", tag=tag, line=line))
            corners.append(_number(attributes.get("X"), name="X", tag=tag, line=line))
            corners.append(_number(attributes.get("Y"), name="Y", tag=tag, line=line))
            return
        self._count += 1
        if self._count > MOST_ELEMENTS:
            raise XmlError(line, f"it has more than {MOST_ELEMENTS} elements, which no such file needs")
        if len(self._open) > MOST_DEPTH:
            raise XmlError(line, f"its elements are nested deeper than {MOST_DEPTH}")
        element = Element(tag, attributes, line)
        self._open[-1].children.append(element)
        self._open.append(element)

    def end(self, tag: str) -> None:
        if tag in CORNERS:
            self._in_corner -= 1
            return
        element = self._open.pop()
        if tag == "point":  # NDPA's corners, whose numbers are elements
            above = self._open[-1]
            above.corners.extend((len(above.corners), element.number("x"), element.number("y")))
            above.children.pop()

    def characters(self, text: str) -> None:
        element = self._open[-1]
        if element.tag in TEXTS:
            element.text += text
            if len(element.text) > LONGEST_TEXT:
                raise XmlError(element.line, f"<{element.tag}> has more than {LONGEST_TEXT} letters")

    def doctype(self, *_: object) -> None:
        raise XmlError(
            self._parser.CurrentLineNumber, "it has a document type, which no annotations need; take it out"
        )


def _number(value: str | None, *, name: str, tag: str, line: int) -> float:
    if value is None:
        raise XmlError(line, f"<{tag}> has no {name}")
    try:
        # Some programs write the decimal sign of the computer's language.
        return float(value if "." in value else value.replace(",", "."))
    except ValueError:
        raise XmlError(line, f"<{tag}> has {name} {shown(value)}, which is no number") from None
