"""How the tissue of a mask is built: areas, boundaries, pieces by size, and what lies round a tissue.

Definitions and units: docs/structure.md. Everything is counted on one level of a mask, whose spacing the
result states; distances are computed block by block with a border as wide as the farthest ring.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from wsiseg.classes import VOID, MaskClass
from wsiseg.geometry import Geometry, Region, clip, region_shape, relative_to
from wsiseg.outlines import Mask, Runs
from wsiseg.progress import Progress, no_progress
from wsiseg.windows import WindowPlan, slabs

SIZES_UM2 = (0.0, 100.0, 1e3, 1e4, 1e5, 1e6, math.inf)
"""Borders of the bins of pieces: a nucleus has about 50 µm², a gland 1e4 to 1e5."""
BLOCK_PX = 1024
STRIP_ROWS = 256
ISOTROPIC = math.pi / 4
"""Length of a line per length of the pixel edges along it, over all directions alike (Cauchy, Crofton)."""


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True)


class Boundary(_Found):
    """Between two classes."""

    a: str
    b: str
    edges_um: float = Field(description="pixel edges with a on one side and b on the other")
    length_um: float = Field(description="pi / 4 of these: the length of lines that have no direction")


class Pieces(_Found):
    """The 4-connected pieces of a class."""

    name: str
    pixels: int
    area_um2: float
    share: float = Field(description="of all pixels that have a class, 0..1")
    count: int
    median_um2: float | None
    largest_um2: float | None
    by_size: tuple[int, ...] = Field(description="number of pieces in the bins of `sizes_um2`")


class Layer(_Found):
    """What lies at a distance from the nearest pixel of the inner tissue."""

    from_um: float
    to_um: float
    area_um2: dict[str, float]
    share: dict[str, float | None]


class Component(_Found):
    """One 4-connected piece of the inner tissue, and what lies nearer to it than to any other."""

    number: int
    box_px: tuple[int, int, int, int] = Field(description="y0, y1, x0, x1 in pixels of the level")
    area_um2: float
    shell_um2: float = Field(description="of the outer tissue within the farthest ring")
    thickness_um: float = Field(description="up to which the outer tissue has half of every ring")


class Structure(_Found):
    """The structure numbers of a slide."""

    spacing_um: tuple[float, ...] = Field(description="of the level that they are from, y and x")
    classes: tuple[Pieces, ...]
    boundaries: tuple[Boundary, ...]
    sizes_um2: tuple[float, ...] = Field(SIZES_UM2[:-1], description="lower borders of the bins of sizes")
    inner: tuple[str, ...]
    outer: tuple[str, ...]
    layers: tuple[Layer, ...]
    components: tuple[Component, ...]


@dataclass(frozen=True)
class Rings:
    """Rings of `step_um` up to `reach_um` round classes; pieces below `min_um2` are not listed singly."""

    inner: Collection[int]
    outer: Collection[int]
    step_um: float = 10.0
    reach_um: float = 200.0
    min_um2: float = 1000.0

    @property
    def count(self) -> int:
        """Number of rings."""
        return round(self.reach_um / self.step_um)


def structure(
    mask: Mask,
    *,
    classes: Sequence[MaskClass],
    geometry: Geometry,
    rings: Rings,
    progress: Progress = no_progress,
) -> Structure:
    """The structure numbers of a mask (y, x) on its `geometry` in µm."""
    names = {c.index: c.name for c in classes}
    layers, components = _rings(mask, names, geometry=geometry, rings=rings, progress=progress)
    return Structure(
        spacing_um=geometry.spacing,
        classes=tuple(_pieces(mask, names, geometry=geometry)),
        boundaries=tuple(_boundaries(mask, names, geometry=geometry)),
        inner=tuple(names[n] for n in sorted(rings.inner)),
        outer=tuple(names[n] for n in sorted(rings.outer)),
        layers=layers,
        components=components,
    )


def _pieces(mask: Mask, names: dict[int, str], *, geometry: Geometry) -> list[Pieces]:
    parts = slabs(len(mask), rows=STRIP_ROWS)
    runs = Runs.joined([Runs.of(mask[p.rows], first=p.rows.start * mask.shape[1]) for p in parts])
    piece = runs.pieces()
    pixels = np.bincount(piece, runs.lengths)
    value = np.empty(len(pixels), np.uint8)
    value[piece] = runs.values
    total = pixels[value != VOID].sum()
    found = []
    for index, name in names.items():
        own = pixels[value == index] * geometry.pixel_area
        count = round(pixels[value == index].sum())
        found.append(
            Pieces(
                name=name,
                pixels=count,
                area_um2=float(own.sum()),
                share=count / total if total else 0.0,
                count=len(own),
                median_um2=float(np.median(own)) if len(own) else None,
                largest_um2=float(own.max()) if len(own) else None,
                by_size=tuple(np.histogram(own, SIZES_UM2)[0].tolist()),
            )
        )
    return found


def _boundaries(mask: Mask, names: dict[int, str], *, geometry: Geometry) -> list[Boundary]:
    """Of every pair of classes that touch."""
    edges = np.zeros((256, 256))
    dy, dx = geometry.spacing
    for part in slabs(len(mask), rows=STRIP_ROWS):
        rows = mask[part.rows.start : part.rows.stop + 1]  # with the first of the next strip
        own = rows[: region_shape((part.rows,))[0]]
        for a, b, length in ((own[:, :-1], own[:, 1:], dy), (rows[:-1], rows[1:], dx)):
            at = np.flatnonzero(a != b)
            pair = a.reshape(-1)[at].astype(np.int64) * 256 + b.reshape(-1)[at]
            edges += length * np.bincount(pair, minlength=1 << 16).reshape(256, 256)
    edges += edges.T
    return [
        Boundary(a=names[a], b=names[b], edges_um=edges[a, b], length_um=edges[a, b] * ISOTROPIC)
        for a in names
        for b in names
        if a < b and edges[a, b] > 0
    ]


def _rings(
    mask: Mask, names: dict[int, str], *, geometry: Geometry, rings: Rings, progress: Progress
) -> tuple[tuple[Layer, ...], tuple[Component, ...]]:
    """Layers round all pieces of the inner tissue, and those pieces that are large enough."""
    if not rings.inner:
        return (), ()
    inside = np.isin(mask, list(rings.inner))
    label, pixels = _labelled(inside)
    large = np.flatnonzero(pixels * geometry.pixel_area >= rings.min_um2)
    large = large[large > 0]
    number = np.zeros(len(pixels), np.int32)
    number[large] = np.arange(1, len(large) + 1, dtype=np.int32)
    counts = np.zeros((len(large) + 1, rings.count, 256), np.int64)  # 0: pieces that are too small
    plan = WindowPlan(shape=mask.shape, core=(BLOCK_PX,) * 2, halo=(0, 0))
    for window in progress(plan.windows(), total=len(plan), what="distances"):
        at, ring, nearest = _around(label, window.core, geometry=geometry, rings=rings)
        values = mask[window.core][at]
        np.add.at(counts, (number[nearest], ring, values), 1)
    layers = tuple(
        _layer(found, names, ring=ring, geometry=geometry, rings=rings)
        for ring, found in enumerate(counts.sum(axis=0))
    )
    boxes = ndimage.find_objects(number[label])
    components = tuple(
        _component(n, counts[n], boxes[n - 1], pixels[large[n - 1]], geometry=geometry, rings=rings)
        for n in range(1, len(large) + 1)
    )
    return layers, components


def _labelled(inside: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The number (y, x) of the 4-connected piece of every pixel, 0 outside, and pixels by number."""
    label, _ = ndimage.label(inside)
    return label, np.bincount(label.ravel()).astype(np.float64)


def _around(
    label: NDArray[np.int32], core: Region, *, geometry: Geometry, rings: Rings
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Where in a core pixels lie in a ring; of these, the ring and the piece that is nearest."""
    nothing = np.zeros(0, np.int64)
    halo = [math.ceil(rings.reach_um / s) for s in geometry.spacing]
    read = clip(
        tuple(slice(c.start - h, c.stop + h) for c, h in zip(core, halo, strict=True)), geometry.shape
    )
    seen = label[read]
    if not seen.any():
        return np.zeros(region_shape(core), bool), nothing, nothing
    inner = relative_to(core, read)
    distance, places = ndimage.distance_transform_edt(
        seen == 0, sampling=geometry.spacing, return_indices=True
    )
    distance, places = distance[inner], places[:, inner[0], inner[1]]
    # A part in a billion less: a pixel at just 10 µm lies in the ring up to 10 µm.
    at = (distance > 0) & (distance <= rings.reach_um * (1 + 1e-9))
    ring = np.ceil(distance[at] / rings.step_um - 1e-9).astype(np.int64) - 1
    return at, ring, seen[places[0][at], places[1][at]].astype(np.int64)


def _layer(
    found: NDArray[np.int64], names: dict[int, str], *, ring: int, geometry: Geometry, rings: Rings
) -> Layer:
    total = int(found[:VOID].sum())
    return Layer(
        from_um=ring * rings.step_um,
        to_um=(ring + 1) * rings.step_um,
        area_um2={name: float(found[n] * geometry.pixel_area) for n, name in names.items()},
        share={name: found[n] / total if total else None for n, name in names.items()},
    )


def _component(
    number: int,
    found: NDArray[np.int64],
    box: tuple[slice, slice],
    pixels: float,
    *,
    geometry: Geometry,
    rings: Rings,
) -> Component:
    """Of the counts (ring, class) round one piece."""
    outer, all_of_them = found[:, list(rings.outer)].sum(axis=1), found[:, :VOID].sum(axis=1)
    enough = (all_of_them > 0) & (2 * outer >= all_of_them)
    thick = rings.count if enough.all() else int(np.argmin(enough))
    y, x = box
    return Component(
        number=number,
        box_px=(y.start, y.stop, x.start, x.stop),
        area_um2=float(pixels * geometry.pixel_area),
        shell_um2=float(outer.sum() * geometry.pixel_area),
        thickness_um=thick * rings.step_um,
    )
