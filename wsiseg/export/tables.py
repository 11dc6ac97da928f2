"""Areas of the classes of a mask as a table, of the whole and of each region that was drawn in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.polygons import PolygonLabels, polygon_regions
from wsiseg.classes import VOID, MaskClass
from wsiseg.export.streams import check_name, written
from wsiseg.geometry import Geometry
from wsiseg.progress import Progress, no_progress
from wsiseg.windows import WindowPlan

BLOCK_PX = 2048
"""Side of what is read at a time on a slide."""
WHOLE = "whole"


@dataclass(frozen=True)
class ClassRow:
    """Of one class in one region."""

    region: str
    region_class: str
    index: int
    name: str
    pixels: int
    size: float
    """mm² on slides, ml of volumes."""
    share: float | None
    """Of the region's pixels that have a class; None where none has one."""


def class_rows(
    mask: Any,
    *,
    classes: Sequence[MaskClass],
    geometry: Geometry,
    regions: Path | None = None,
    progress: Progress = no_progress,
) -> list[ClassRow]:
    """Every class of a mask (*axes) uint8, then every class in each polygon of a GeoJSON `regions`.

    A pixel belongs to a region if its centre lies inside. Raises AnnotationError.
    """
    drawn = polygon_regions(regions, grid=geometry.shape) if regions is not None else []
    counts = np.zeros((len(drawn) + 1, VOID + 1), np.int64)
    for number, values in _counted(mask, [labels for _, labels in drawn], progress=progress):
        counts[number] += np.bincount(values, minlength=VOID + 1)
    names = [(WHOLE, ""), *((str(mark.number), mark.class_name or "") for mark, _ in drawn)]
    unit = geometry.pixel_area / (1e6 if geometry.axes == "yx" else 1e3)
    rows = []
    for (region, region_class), found in zip(names, counts, strict=True):
        total = int(found[:VOID].sum())
        for c in classes:
            pixels = int(found[c.index])
            size, share = round(pixels * unit, 9), pixels / total if total else None
            rows.append(ClassRow(region, region_class, c.index, c.name, pixels, size, share))
    return rows


def _counted(
    mask: Any, drawn: Sequence[PolygonLabels], *, progress: Progress
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Values of the whole (0) and of the regions (1, 2, ...), block by block."""
    ndim = len(mask.shape)
    side = BLOCK_PX if ndim == 2 else 256
    plan = WindowPlan(shape=tuple(mask.shape), core=(side,) * ndim, halo=(0,) * ndim)
    for window in progress(plan.windows(), total=len(plan), what="areas"):
        values = np.asarray(mask[window.core])
        yield 0, values.ravel()
        for number, labels in enumerate(drawn, start=1):
            if labels.touches(window.core):
                yield number, values[labels.read(window.core) != VOID]


def class_table(rows: Sequence[ClassRow], *, axes: str) -> list[dict[str, Any]]:
    """The rows as they are written, with the unit in the name of a column."""
    size = "area_mm2" if axes == "yx" else "volume_ml"
    return [
        {
            "region": row.region,
            "region_class": row.region_class,
            "class_index": row.index,
            "class": row.name,
            "pixels": row.pixels,
            size: row.size,
            "share": row.share,
        }
        for row in rows
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that all have the same columns. Raises StoreError, UsageError."""
    check_name(path, (".csv", ".csv.gz"), what="a table")
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(rows[0])
    table.writerows([_safe(cell) for cell in row.values()] for row in rows)
    with written(path) as stream:
        stream.write(text.getvalue().encode())


def _safe(cell: Any) -> Any:
    """A cell that no table program takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in {"=", "+", "-", "@", "\t", "\r"} else cell
