"""Polygons as the XML of other programs, written as a stream: ASAP, ImageScope, HALO, NDP.view.

ASAP and NDP.view have no holes: there an outline goes from its first corner to each hole, round it and
the same way back. Two edges that lie on each other enclose nothing, so that the area is the polygon's.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from wsiseg.classes import Color, MaskClass
from wsiseg.errors import StoreError
from wsiseg.export.geojson import Outlines, level0_rings, traced
from wsiseg.export.streams import check_name, written
from wsiseg.progress import Progress, no_progress

Corners = NDArray[Any]
"""Of a ring (n, 2) as x, y, not closed."""


@dataclass(frozen=True)
class Layer:
    """A class of areas: what it is called and its colour."""

    name: str
    color: Color

    @property
    def hexadecimal(self) -> str:
        """As in web pages."""
        return "#{:02x}{:02x}{:02x}".format(*self.color)

    @property
    def bgr(self) -> int:
        """As a Windows program stores it."""
        red, green, blue = self.color
        return red + (green << 8) + (blue << 16)


@dataclass(frozen=True)
class Area:
    """A polygon to write: the outside, then the holes."""

    layer: Layer
    rings: Sequence[Corners]


@dataclass(frozen=True)
class Kind:
    """How a program writes polygons."""

    suffixes: tuple[str, ...]
    head: str
    area: Callable[[Area, int], Iterator[str]]
    """The text of an area, of which this is the n-th."""
    tail: Callable[[Sequence[Layer]], str]
    layer: tuple[Callable[[Layer, int], str], str] | None = None
    """What stands before and after the areas of a class, where they stand together."""


def write_marks(path: Path, areas: Iterable[Area], *, kind: Kind, layers: Sequence[Layer], what: str) -> None:
    """Write polygons of `layers`. Raises StoreError, UsageError."""
    check_name(path, [f"{s}{gz}" for gz in ("", ".gz") for s in kind.suffixes], what=what)
    with written(path) as stream:
        stream.write(kind.head.encode())
        if kind.layer is None:
            for number, area in enumerate(areas):
                stream.writelines(part.encode() for part in kind.area(area, number))
        else:
            _write_layers(stream, areas, kind=kind, layers=layers)
        stream.write(kind.tail(layers).encode())


def write_pieces(
    path: Path,
    mask: Any,
    *,
    kind: Kind,
    what: str,
    classes: Sequence[MaskClass],
    spacing: tuple[float, ...],
    outlines: Outlines,
    place: Callable[[Corners], Corners] = lambda ring: ring,
    progress: Progress = no_progress,
) -> dict[str, int]:
    """Write a mask (y, x) uint8, or a zarr array, as polygons; returns their number by class.

    `place` moves rings (n, 2) of level-0 pixels (x, y) to where the program counts from. Raises StoreError,
    UsageError.
    """
    layers = {c.index: Layer(c.name, c.color) for c in classes if c.index not in outlines.left_out}
    counts = {layer.name: 0 for layer in layers.values()}

    def areas() -> Iterator[Area]:
        for piece in traced(mask, outlines, spacing=spacing, progress=progress):
            if piece.value not in layers:
                raise StoreError(
                    f"the mask holds {piece.value}, which is none of its classes: verify its store"
                )
            layer = layers[piece.value]
            counts[layer.name] += 1
            yield Area(layer, [place(ring) for ring in level0_rings(piece, outlines, spacing=spacing)])

    write_marks(path, areas(), kind=kind, layers=list(layers.values()), what=what)
    return counts


def _write_layers(stream: IO[bytes], areas: Iterable[Area], *, kind: Kind, layers: Sequence[Layer]) -> None:
    """Class by class; areas come in any order, so those of each wait in a file."""
    assert kind.layer is not None
    begin, end = kind.layer
    with ExitStack() as stack:
        waiting = {layer: stack.enter_context(tempfile.TemporaryFile()) for layer in layers}
        for number, area in enumerate(areas, start=1):
            waiting[area.layer].writelines(part.encode() for part in kind.area(area, number))
        for number, (layer, texts) in enumerate(waiting.items(), start=1):
            if texts.tell():
                texts.seek(0)
                stream.write(begin(layer, number).encode())
                shutil.copyfileobj(texts, stream)
                stream.write(end.encode())


def keyhole(rings: Sequence[Corners]) -> Corners:
    """One ring round what rings (outside, holes) enclose."""
    outside, *holes = rings
    turns = np.sign(_doubled_area(outside))
    parts = [outside[:1]]
    for hole in holes:
        # The other way round, so that also who counts turns takes it for a hole.
        around = hole[::-1] if np.sign(_doubled_area(hole)) == turns else hole
        parts += [around, around[:1], outside[:1]]
    return np.concatenate([*parts, outside[1:]])


def _doubled_area(ring: Corners) -> float:
    x, y = ring.astype(np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _number(value: Any) -> str:
    """The shortest text that is read as the same number."""
    return repr(value.item()).removesuffix(".0")


def _places(ring: Corners) -> Iterator[tuple[str, str]]:
    return ((_number(x), _number(y)) for x, y in ring)


def _asap_area(area: Area, number: int) -> Iterator[str]:
    yield (
        f'<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup={quoteattr(area.layer.name)} '
        f'Color="{area.layer.hexadecimal}"><Coordinates>\n'
    )
    for order, (x, y) in enumerate(_places(keyhole(area.rings))):
        yield f'<Coordinate Order="{order}" X="{x}" Y="{y}" />\n'
    yield "</Coordinates></Annotation>\n"


def _asap_tail(layers: Sequence[Layer]) -> str:
    groups = "".join(
        f'<Group Name={quoteattr(layer.name)} PartOfGroup="None" Color="{layer.hexadecimal}">'
        "<Attributes /></Group>\n"
        for layer in layers
    )
    return f"</Annotations>\n<AnnotationGroups>\n{groups}</AnnotationGroups>\n</ASAP_Annotations>\n"


def _imagescope_area(area: Area, number: int) -> Iterator[str]:
    for position, ring in enumerate(area.rings):
        yield (
            f'<Region Id="{number}" Type="0" Zoom="1" Selected="0" Text="" NegativeROA="{int(position > 0)}" '
            f'InputRegionId="0" Analyze="0" DisplayId="{number}"><Vertices>\n'
        )
        for x, y in _places(ring):
            yield f'<Vertex X="{x}" Y="{y}" Z="0" />\n'
        yield "</Vertices></Region>\n"


def _imagescope_layer(layer: Layer, number: int) -> str:
    return (
        f'<Annotation Id="{number}" Name={quoteattr(layer.name)} ReadOnly="0" Type="4" '
        f'LineColor="{layer.bgr}" Visible="1"><Attributes /><Regions>\n'
    )


def _halo_area(area: Area, number: int) -> Iterator[str]:
    for position, ring in enumerate(area.rings):
        yield f'<Region Type="Polygon" HasEndcaps="0" NegativeROA="{int(position > 0)}"><Vertices>\n'
        for x, y in _places(ring):
            yield f'<V X="{x}" Y="{y}" />\n'
        yield "</Vertices><Comments /></Region>\n"


def _halo_layer(layer: Layer, number: int) -> str:
    name = quoteattr(layer.name)
    return f'<Annotation LineColor="{layer.bgr}" Name={name} Visible="True"><Regions>\n'


def _ndpa_area(area: Area, number: int) -> Iterator[str]:
    ring = keyhole(area.rings)
    x, y = (_number(n) for n in np.rint(ring.mean(axis=0)))
    title = escape(area.layer.name)
    yield (
        f'<ndpviewstate id="{number + 1}"><title>{title}</title><coordformat>nanometers</coordformat>'
        f"<lens>10</lens><x>{x}</x><y>{y}</y><z>0</z><showtitle>0</showtitle><showhistogram>0</showhistogram>"
        f'<showlineprofile>0</showlineprofile><annotation type="freehand" displayname="AnnotateFreehand" '
        f'color="{area.layer.hexadecimal}"><measuretype>3</measuretype><closed>1</closed><pointlist>\n'
    )
    for x, y in _places(ring):
        yield f"<point><x>{x}</x><y>{y}</y></point>\n"
    yield "</pointlist></annotation></ndpviewstate>\n"


_XML = '<?xml version="1.0" encoding="utf-8"?>\n'
_REGIONS_END = "</Regions></Annotation>\n"
ASAP = Kind((".xml",), f"{_XML}<ASAP_Annotations>\n<Annotations>\n", _asap_area, _asap_tail)
IMAGESCOPE = Kind(
    (".xml",),
    f"{_XML}<Annotations>\n",
    _imagescope_area,
    lambda layers: "</Annotations>\n",
    (_imagescope_layer, _REGIONS_END),
)
HALO = Kind(
    (".annotations", ".xml"),
    f"{_XML}<Annotations>\n",
    _halo_area,
    lambda layers: "</Annotations>\n",
    (_halo_layer, _REGIONS_END),
)
NDPA = Kind((".ndpa",), f"{_XML}<annotations>\n", _ndpa_area, lambda layers: "</annotations>\n")
