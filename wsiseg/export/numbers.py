"""Structure numbers of a finished mask, and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wsiseg.classes import MaskClass, index_of_name
from wsiseg.errors import UsageError
from wsiseg.geometry import Geometry
from wsiseg.progress import Progress
from wsiseg.store import MASK, CaseStore
from wsiseg.structure import SIZES_UM2, Rings, Structure, structure

MOST_PIXELS = 1 << 25
"""Of a level that is taken if no resolution is asked for: it and its distances take about 1 GB."""
MOST_ASKED_PIXELS = 1 << 28
INNER, OUTER = "epitheli", "stroma"
"""Parts of the names of the classes that are taken where none are named."""


def mask_levels(store: CaseStore) -> list[Any]:
    """The mask of a finished store and its coarser levels."""
    made = (store.completion() or {}).get("levels", {})
    return [store.mask(n) for n in range(1 + sum(name.startswith(f"{MASK}/") for name in made))]


def structure_of(
    levels: Sequence[Any],
    *,
    classes: Sequence[MaskClass],
    geometry: Geometry,
    mpp: float | None,
    around: Sequence[str] | None,
    min_um2: float | None,
    progress: Progress,
) -> Structure:
    """The structure numbers of a mask, of whose `levels` (y, x) the first lies on `geometry`.

    Of the coarsest level that is as fine as `mpp` µm, else of the finest of at most MOST_PIXELS. `around`
    names the inner classes. Raises UsageError.
    """
    number = _level(levels, geometry=geometry, mpp=mpp)
    mask = np.asarray(levels[number][:])
    spacing = tuple(s * 2**number for s in geometry.spacing)
    grid = Geometry(axes="yx", shape=mask.shape, spacing=spacing, unit="micrometer")
    inner = _named(classes, around) if around else _part_of_name(classes, INNER)
    outer = [n for n in _part_of_name(classes, OUTER) if n not in inner]
    rings = Rings(inner, outer) if min_um2 is None else Rings(inner, outer, min_um2=min_um2)
    return structure(mask, classes=classes, geometry=grid, rings=rings, progress=progress)


def _level(levels: Sequence[Any], *, geometry: Geometry, mpp: float | None) -> int:
    sizes = [level.shape[0] * level.shape[1] for level in levels]
    if mpp is None:
        return next((n for n, size in enumerate(sizes) if size <= MOST_PIXELS), len(levels) - 1)
    fine = [n for n in range(len(levels)) if max(geometry.spacing) * 2**n <= mpp * (1 + 1e-6)]
    if not fine:
        raise UsageError(
            f"--mpp is {mpp:g} µm and the mask has pixels of {max(geometry.spacing):g} µm; ask for no less"
        )
    if sizes[fine[-1]] > MOST_ASKED_PIXELS:
        raise UsageError(
            f"the mask has {sizes[fine[-1]]} pixels at --mpp {mpp:g}, and at most {MOST_ASKED_PIXELS} are "
            "looked at; ask for a larger --mpp"
        )
    return fine[-1]


def _part_of_name(classes: Sequence[MaskClass], part: str) -> list[int]:
    return [c.index for c in classes if part in c.name.casefold()]


def _named(classes: Sequence[MaskClass], names: Sequence[str]) -> list[int]:
    found = []
    for name in names:
        index = index_of_name(classes, name)
        if index is None:
            known = ", ".join(c.name for c in classes)
            raise UsageError(f"--around {name!r} is no class of this mask; its classes are {known}")
        found.append(index)
    return found


def structure_rows(found: Structure) -> list[dict[str, Any]]:
    """One number a row: what it is, of which class or classes or component, from where to where."""
    columns = ("measure", "class", "other", "component", "from", "to", "value", "unit")
    return [dict.fromkeys(columns, "") | row for row in _rows(found)]


def _rows(found: Structure) -> Iterator[dict[str, Any]]:
    for c in found.classes:
        yield {"measure": "area", "class": c.name, "value": c.area_um2, "unit": "µm²"}
        yield {"measure": "share", "class": c.name, "value": c.share, "unit": "1"}
        yield {"measure": "pieces", "class": c.name, "value": c.count, "unit": "number"}
        for what, value in (("median", c.median_um2), ("largest", c.largest_um2)):
            yield {"measure": f"{what} piece", "class": c.name, "value": value, "unit": "µm²"}
        for start, stop, count in zip(SIZES_UM2, SIZES_UM2[1:], c.by_size, strict=False):
            place = {"from": start, "to": stop}
            yield {
                "measure": "pieces by size (µm²)",
                "class": c.name,
                "value": count,
                "unit": "number",
            } | place
    for b in found.boundaries:
        pair = {"class": b.a, "other": b.b, "unit": "µm"}
        yield {"measure": "boundary edges", "value": b.edges_um} | pair
        yield {"measure": "boundary length", "value": b.length_um} | pair
    for layer in found.layers:
        place = {"from": layer.from_um, "to": layer.to_um}
        for name, area in layer.area_um2.items():
            yield {"measure": "layer area (by µm)", "class": name, "value": area, "unit": "µm²"} | place
            share = layer.share[name]
            yield {"measure": "layer share (by µm)", "class": name, "value": share, "unit": "1"} | place
    for piece in found.components:
        own = {"component": piece.number}
        yield {"measure": "component area", "value": piece.area_um2, "unit": "µm²"} | own
        yield {"measure": "shell area", "value": piece.shell_um2, "unit": "µm²"} | own
        yield {"measure": "shell thickness", "value": piece.thickness_um, "unit": "µm"} | own
