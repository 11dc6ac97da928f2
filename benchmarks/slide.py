"""A slide of any size out of real crops: tiled, pyramidal, JPEG, about 60 % tissue.

The pixels are real tissue (the shipped crops of the Y-Net repository), their arrangement is made up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from wsiseg.demo import SAMPLES

CELL = 384
TILE = 256
GLASS = 243
TISSUE_SHARE = 0.6
LEVELS = 4


def _layout(rows: int, columns: int, *, period: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Cells that hold tissue: the highest of a smooth random field, repeated every `period` rows."""
    field = rng.normal(size=(period, columns))
    for axis in (0, 1):
        for _ in range(6):
            field = (np.roll(field, 1, axis) + field + np.roll(field, -1, axis)) / 3
    tissue = field > np.quantile(field, 1 - TISSUE_SHARE)
    return np.tile(tissue, (-(-rows // period), 1))[:rows]


def _bands(height: int, width: int, *, period_px: int) -> Iterator[NDArray[np.uint8]]:
    """Rows of cells (CELL, width, 3) from the top."""
    rng = np.random.default_rng(5)
    crops = [
        np.asarray(Image.open(path)) for path in sorted((SAMPLES / "ynet-breast8" / "images").glob("*.png"))
    ]
    columns = -(-width // CELL)
    tissue = _layout(-(-height // CELL), columns, period=-(-period_px // CELL), rng=rng)
    noise = rng.integers(-2, 3, (CELL, CELL, 1), dtype=np.int16)
    glass = np.clip(GLASS + noise + np.zeros(3, np.int16), 0, 255).astype(np.uint8)
    for row in tissue:
        cells = []
        for filled in row:
            crop = crops[int(rng.integers(len(crops)))]
            turned = np.rot90(crop, int(rng.integers(4)))
            cells.append(turned if filled else glass)
        yield np.concatenate(cells, axis=1)[:, :width]


def mosaic(*, height: int, width: int, period_px: int = 12_000) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of such a slide."""
    image = np.empty((height, width, 3), np.uint8)
    top = 0
    for band in _bands(height, width, period_px=period_px):
        rows = min(CELL, height - top)
        image[top : top + rows] = band[:rows]
        top += rows
    return image


def make_slide(path: Path, *, height: int, width: int, period_px: int = 12_000) -> Path:
    """Write a slide of 0.5 µm per pixel; nothing is done if it is there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    image = mosaic(height=height, width=width, period_px=period_px)
    partial = path.with_suffix(".partial.tif")
    options: dict[str, Any] = {"tile": (TILE, TILE), "compression": "jpeg", "photometric": "rgb"}
    with tifffile.TiffWriter(partial, bigtiff=True) as writer:
        for level in range(LEVELS):
            shown = image[:: 2**level, :: 2**level]
            mpp = 0.5 * 2**level
            writer.write(
                shown, resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0, metadata=None, **options,
            )  # fmt: skip
    partial.rename(path)
    return path
