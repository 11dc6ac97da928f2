"""Small real cases, and runs that are stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray

import wsiseg
from wsiseg.report import Report

T = TypeVar("T")
CROPS = Path(__file__).parents[1] / "wsiseg" / "samples" / "ynet-breast8"
NAMES = ("1222_1_7200_3600_2", "1339_1_1000_9800_1.33", "2204_1_18400_11800_1.33")
SMALL: dict[str, Any] = {"core": 64, "halo": 16, "slab": 64, "chunk": 32, "tissue_margin_um": 8.0}


def write_tiff(path: Path, rgb: NDArray[np.uint8], *, mpp: float | None = 0.5, tile: int = 32) -> Path:
    """A tiled lossless TIFF of known pixel size."""
    resolution: dict[str, Any] = {}
    if mpp is not None:
        resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, rgb, tile=(tile, tile), photometric="rgb", compression="zlib", **resolution)
    return path


def mask_of(report: Report) -> NDArray[np.uint8]:
    return np.asarray(wsiseg.open_store(report.store).mask()[:])


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def stop_after(count: int) -> Any:
    def progress(items: Iterator[T], *, total: int, what: str) -> Iterator[T]:
        for number, item in enumerate(items):
            if number == count:
                raise Interrupted
            yield item

    return progress


def polygon(name: str | None, *corners: tuple[float, float]) -> dict[str, Any]:
    properties = {"classification": {"name": name}} if name else {}
    ring = [list(c) for c in (*corners, corners[0])]
    return {
        "type": "Feature",
        "properties": properties,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
