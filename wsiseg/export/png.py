"""A mask as a PNG at a resolution: class indices with a palette, so that it shows colours too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.errors import UsageError
from wsiseg.export.streams import check_name, written
from wsiseg.geometry import Geometry
from wsiseg.progress import Progress, no_progress
from wsiseg.windows import slabs

MOST_PIXELS = 178_956_970
"""What Pillow reads again without a warning, times two; more belongs into an OME-TIFF."""
USUAL_SIDE_PX = 4096
"""Of a picture of which no resolution is asked for, at most."""
_ROWS = 256
_UM_PER_M = 1e6


def write_png(
    path: Path,
    levels: Sequence[Any],
    *,
    geometry: Geometry,
    colors: NDArray[np.uint8],
    mpp: float | None = None,
    progress: Progress = no_progress,
) -> Geometry:
    """Write a mask at `mpp` µm a pixel, else at its finest level of up to 4096 pixels; returns its grid.

    `levels` (y, x) uint8 are halved one by one, the first on `geometry`. Every pixel has the class at its
    centre; classes are not mixed. Raises StoreError, UsageError.
    """
    check_name(path, (".png",), what="a PNG")
    grid = _grid(geometry, levels, mpp)
    if (pixels := grid.shape[0] * grid.shape[1]) > MOST_PIXELS:
        raise UsageError(
            f"a PNG at {grid.spacing[0]:g} µm would have {pixels} pixels and {MOST_PIXELS} are written; "
            "ask for a larger --mpp, or for --to ome-tiff"
        )
    picture = Image.fromarray(_sampled(levels, geometry, grid, progress=progress))
    picture.putpalette(colors.tobytes())
    per_inch = [25400 / s for s in grid.spacing[::-1]]
    with written(path) as stream:
        picture.save(stream, format="PNG", dpi=tuple(per_inch))
    return grid


def _grid(geometry: Geometry, levels: Sequence[Any], mpp: float | None) -> Geometry:
    if mpp is None:
        factor = next((2**n for n, a in enumerate(levels) if max(a.shape) <= USUAL_SIDE_PX), None)
        factor = factor or 2 ** (len(levels) - 1)
        return geometry.at_spacing([s * factor for s in geometry.spacing])
    if not min(geometry.spacing) * (1 - 1e-6) <= mpp < max(geometry.extent):
        raise UsageError(
            f"--mpp is {mpp:g} µm; a picture of this mask has pixels of {min(geometry.spacing):g} to "
            f"{max(geometry.extent):g} µm"
        )
    return geometry.at_spacing((mpp, mpp))


def _sampled(
    levels: Sequence[Any], geometry: Geometry, grid: Geometry, *, progress: Progress
) -> NDArray[np.uint8]:
    """The class at the centre of every pixel of a grid, from the coarsest level that is fine enough."""
    ratio = [g / s for g, s in zip(grid.spacing, geometry.spacing, strict=True)]
    number = max(n for n in range(len(levels)) if n == 0 or 2**n <= min(ratio) * (1 + 1e-6))
    level = levels[number]
    # Level n holds every 2^n-th pixel: pixel i of it is pixel i 2^n of level 0.
    y, x = (
        np.clip(((np.arange(n) + 0.5) * r / 2**number).astype(np.int64), 0, size - 1)
        for n, r, size in zip(grid.shape, ratio, level.shape, strict=True)
    )
    out = np.empty(grid.shape, np.uint8)
    parts = slabs(grid.shape[0], rows=_ROWS)
    for part in progress(iter(parts), total=len(parts), what="PNG"):
        rows = y[part.rows]
        out[part.rows] = np.asarray(level[int(rows[0]) : int(rows[-1]) + 1])[rows - rows[0]][:, x]
    return out
