"""A mask as polygons for QuPath, written as a stream, band by band."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from wsiseg.classes import VOID, MaskClass
from wsiseg.errors import StoreError, UsageError
from wsiseg.export.streams import check_name, written
from wsiseg.outlines import Piece, Tracer
from wsiseg.progress import Progress, no_progress
from wsiseg.windows import Slab, slabs

SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz")
BAND_ROWS = 1024
"""Rows that polygons are traced in, or what makes whole chunks: each border cuts what crosses it."""
_BAND_PX = 1 << 26
"""Of a band that is higher than a chunk: what its outlines take grows with it."""
_READ_PX = 1 << 26
_COMPACT = (",", ":")


@dataclass(frozen=True)
class Outlines:
    """How a mask becomes polygons."""

    tolerance_um: float = 0.0
    """How far a simplified outline may lie from the pixels' edges; 0 is exactly on them."""
    min_area_um2: float = 0.0
    """Pieces below this area are left out; of those that a band cuts, none."""
    merge: bool = False
    """Cut nothing, and keep the outlines of the whole mask in memory."""
    left_out: Collection[int] = ()
    """Classes that are not written."""
    offset_xy: tuple[int, int] = (0, 0)
    """The level-0 pixel (x, y) that is written as (0, 0)."""

    def __post_init__(self) -> None:
        for name, value in (("--tolerance", self.tolerance_um), ("--min-area", self.min_area_um2)):
            if not 0 <= value < np.inf:
                raise UsageError(f"{name} is {value}; it must be 0 or a positive number")


def write_geojson(
    path: Path,
    mask: Any,
    *,
    classes: Sequence[MaskClass],
    spacing: tuple[float, ...],
    outlines: Outlines,
    about: dict[str, Any],
    progress: Progress = no_progress,
) -> dict[str, int]:
    """Write a mask (y, x) uint8, or a zarr array, as polygons; returns their number by class.

    `spacing` is (y, x) in µm; `about` goes into the file as its member "wsiseg".

    Raises StoreError, UsageError.
    """
    check_name(path, SUFFIXES, what="a GeoJSON")
    counts = dict.fromkeys((c.name for c in classes if c.index not in outlines.left_out), 0)
    properties = {c.index: (c.name, json.dumps(_properties(c))) for c in classes}
    head = json.dumps({"type": "FeatureCollection", "wsiseg": about}, ensure_ascii=False)
    with written(path) as stream:
        stream.write(head[:-1].encode() + b', "features": [')
        between = b"\n"
        for piece in traced(mask, outlines, spacing=spacing, progress=progress):
            if piece.value not in properties:
                raise StoreError(
                    f"the mask holds {piece.value}, which is none of its classes: verify its store"
                )
            name, text = properties[piece.value]
            counts[name] += 1
            rings = level0_rings(piece, outlines, spacing=spacing)
            closed = [np.concatenate([ring, ring[:1]]).tolist() for ring in rings]
            places = json.dumps(closed, separators=_COMPACT)
            geometry = f'{{"type":"Polygon","coordinates":{places}}}'
            stream.write(between + f'{{"type":"Feature","geometry":{geometry},"properties":{text}}}'.encode())
            between = b",\n"
        stream.write(b"\n]}\n")
    return counts


def _properties(c: MaskClass) -> dict[str, Any]:
    """Of a feature as QuPath writes them."""
    return {"objectType": "annotation", "classification": {"name": c.name, "color": list(c.color)}}


def traced(
    mask: Any, outlines: Outlines, *, spacing: tuple[float, ...], progress: Progress
) -> Iterator[Piece]:
    """Pieces of a mask, cut at the borders of bands or whole."""
    height, width = mask.shape
    chunk = int((getattr(mask, "chunks", None) or (BAND_ROWS,))[0])
    rows = max(1, min(-(-BAND_ROWS // chunk), _BAND_PX // (chunk * width))) * chunk
    min_pixels = outlines.min_area_um2 / (spacing[0] * spacing[1])
    known = np.full(256, VOID, np.uint8)
    known[:VOID] = np.arange(VOID)
    known[list(outlines.left_out)] = VOID
    tracer = Tracer(width)
    bands = slabs(height, rows=rows)
    for band in progress(iter(bands), total=len(bands), what="polygons"):
        for part in _parts(band, chunk=chunk, width=width):
            tracer.add(known[np.asarray(mask[part])])
        if not outlines.merge:
            borders = {band.rows.start, band.rows.stop} - {0, height}
            yield from _kept(tracer.pieces(), borders=borders, min_pixels=min_pixels)
            tracer = Tracer(width, top=band.rows.stop)
    if outlines.merge:
        yield from tracer.pieces(min_pixels=min_pixels)


def _parts(band: Slab, *, chunk: int, width: int) -> Iterator[slice]:
    """Rows of a band that are read at a time: whole chunks, and no more of them than needed."""
    step = max(1, _READ_PX // (width * chunk)) * chunk
    for start in range(band.rows.start, band.rows.stop, step):
        yield slice(start, min(start + step, band.rows.stop))


def _kept(pieces: Iterator[Piece], *, borders: set[int], min_pixels: float) -> Iterator[Piece]:
    """Pieces of at least `min_pixels`, and those that may go on beyond a border."""
    for piece in pieces:
        y = piece.rings[0][:, 1]
        if piece.pixels >= min_pixels or {int(y.min()), int(y.max())} & borders:
            yield piece


def level0_rings(piece: Piece, outlines: Outlines, *, spacing: tuple[float, ...]) -> list[NDArray[np.int32]]:
    """Rings of level-0 pixels (x, y), not closed: the outside, then the holes."""
    rings = piece.rings
    if outlines.tolerance_um > 0:
        rings = _simplified(rings, tolerance_um=outlines.tolerance_um, spacing=spacing)
    return [ring - np.asarray(outlines.offset_xy, np.int32) for ring in rings]


def _simplified(
    rings: tuple[NDArray[np.int32], ...], *, tolerance_um: float, spacing: tuple[float, ...]
) -> tuple[NDArray[np.int32], ...]:
    """Rings with fewer corners, all of them old ones; as they were where the polygon would not be valid."""
    um = np.array([spacing[1], spacing[0]])
    whole = shapely.Polygon(rings[0] * um, [ring * um for ring in rings[1:]])
    found = shapely.simplify(whole, tolerance_um, preserve_topology=True)
    if not isinstance(found, shapely.Polygon) or found.is_empty:
        return rings
    pixels = tuple(
        np.rint(shapely.get_coordinates(ring)[:-1] / um).astype(np.int32)
        for ring in (found.exterior, *found.interiors)
    )
    return pixels if shapely.Polygon(pixels[0], pixels[1:]).is_valid else rings
