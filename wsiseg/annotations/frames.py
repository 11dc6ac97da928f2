"""From the coordinates of a file of marks to level-0 pixels (x, y)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from wsiseg.annotations.marks import Mark
from wsiseg.annotations.reading import MarkFile
from wsiseg.config import AnnotationRules
from wsiseg.errors import AnnotationError
from wsiseg.sources.slide import bounds_corner, on_glass

Pair = NDArray[np.float64]


def placed(
    found: MarkFile,
    *,
    path: Path,
    rules: AnnotationRules,
    spacing: tuple[float, ...] | None = None,
    slide: Path | None = None,
) -> list[Mark]:
    """The marks of the file `path` in level-0 pixels.

    `spacing` is (y, x) in µm where it is known. `slide` is the file that the marks were drawn on; it says
    where its bounds begin and where it lies on the glass. Raises AnnotationError where one is
    needed and missing.
    """
    if found.unit == "nanometres":
        return _moved(found.marks, *_from_glass(path, slide))
    scale, corner = np.ones(2), np.zeros(2)
    if rules.annotation_units == "micrometres":
        if spacing is None:
            raise AnnotationError(
                f"{path} is in micrometres, and nobody knows the size of a pixel: use pixels"
            )
        scale = 1 / np.array(spacing[::-1])
    if rules.annotation_frame == "bounds":
        if slide is None:
            raise AnnotationError(f"{path} counts from the bounds of a slide: name its file with --input")
        corner = np.array(bounds_corner(slide)[::-1], float)
    return _moved(found.marks, scale, corner)


def _from_glass(path: Path, slide: Path | None) -> tuple[Pair, Pair]:
    if slide is None:
        raise AnnotationError(
            f"{path} counts from the centre of the glass, and where that is stands in the slide's file: "
            "name it with --input"
        )
    glass = on_glass(slide)
    if glass is None:
        raise AnnotationError(
            f"{path} counts from the centre of the glass, and {slide} does not say where its image lies "
            "on it; only Hamamatsu's files do: convert the marks to GeoJSON"
        )
    nm = 1000 * np.array(glass.spacing_um[::-1])
    return 1 / nm, np.array(glass.shape[::-1]) / 2 - np.array(glass.middle_nm[::-1]) / nm


def _moved(marks: Sequence[Mark], scale: Pair, shift: Pair) -> list[Mark]:
    if (scale == 1).all() and (shift == 0).all():
        return list(marks)  # the file's own corners, to the last bit
    areas = shapely.transform(np.array([mark.area for mark in marks]), lambda xy: xy * scale + shift)
    return [replace(mark, area=area) for mark, area in zip(marks, areas, strict=True)]
