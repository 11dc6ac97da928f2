"""A mask as a pyramidal, tiled OME-TIFF, of class indices or of colours, written tile by tile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsiseg.export.streams import check_name, written
from wsiseg.progress import Progress, no_progress

SUFFIXES = (".ome.tif", ".ome.tiff")
TILE_PX = 512
_UM_PER_CM = 1e4


def write_ome_tiff(
    path: Path,
    levels: Sequence[Any],
    *,
    spacing: tuple[float, ...],
    name: str,
    identity: str,
    colors: NDArray[np.uint8] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Write the levels of a mask (y, x) uint8, each half the one before, as one image and its pyramid.

    With `colors` (256, 3) their colours. `spacing` is (y, x) in µm; `identity` is what the file's UUID is
    made from: the same mask gives the same bytes, and none of them says on which machine. StoreError.
    """
    check_name(path, SUFFIXES, what="an OME-TIFF")
    common: dict[str, Any] = {
        "dtype": np.uint8,
        "tile": (TILE_PX, TILE_PX),
        "compression": "zlib",
        "predictor": False,
        "photometric": "minisblack" if colors is None else "rgb",
        "resolutionunit": "CENTIMETER",
    }
    metadata = {
        "axes": "YX" if colors is None else "YXS",
        "Name": name,
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{identity} {colors is not None}")),
        "PhysicalSizeX": spacing[1],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": spacing[0],
        "PhysicalSizeYUnit": "µm",
    }
    total = sum(-(-level.shape[0] // TILE_PX) for level in levels)
    rows = progress(_rows(levels), total=total, what="OME-TIFF")
    with written(path) as stream, tifffile.TiffWriter(stream, bigtiff=True, ome=True) as tiff:
        for number, level in enumerate(levels):
            shape = (*level.shape, 3) if colors is not None else level.shape
            scale = 2**number
            tiff.write(
                _tiles(rows, level.shape, colors=colors),
                shape=shape,
                resolution=(_UM_PER_CM / spacing[1] / scale, _UM_PER_CM / spacing[0] / scale),
                **({"subifds": len(levels) - 1, "metadata": metadata} if not number else {"subfiletype": 1}),
                **common,
            )


def _rows(levels: Sequence[Any]) -> Iterator[NDArray[np.uint8]]:
    """Rows of tiles, level by level, the last of each as high as a tile."""
    for level in levels:
        for start in range(0, level.shape[0], TILE_PX):
            yield np.asarray(level[start : start + TILE_PX])


def _tiles(
    rows: Iterator[NDArray[np.uint8]], shape: tuple[int, ...], *, colors: NDArray[np.uint8] | None
) -> Iterator[NDArray[np.uint8]]:
    """The tiles of one level, those at its right and lower border filled up with 0."""
    for _ in range(-(-shape[0] // TILE_PX)):
        row = next(rows)
        for start in range(0, shape[1], TILE_PX):
            part = row[:, start : start + TILE_PX]
            values = part if colors is None else colors[part]
            tile = np.zeros((TILE_PX, TILE_PX, *values.shape[2:]), np.uint8)
            tile[: values.shape[0], : values.shape[1]] = values
            yield tile
