"""Levels of slides whose tiles tifffile decodes to the pixels that OpenSlide gives, for less CPU time."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC

from wsiseg.errors import SourceError
from wsiseg.geometry import Region
from wsiseg.sources.base import Array
from wsiseg.sources.tiff import DAMAGED, DECODE_ERRORS, check_tiles, level_array

logger = logging.getLogger(__name__)

VENDORS = frozenset({"aperio"})
"""Of which a real slide was compared, tile by tile."""
FAILURES = (*DAMAGED, *DECODE_ERRORS, SourceError)


def proven_tiles(path: Path, shape: tuple[int, int], *, reference: Callable[[Region], Array]) -> Any:
    """The level of `shape` as an array (y, x, 3) if its first, middle and last tiles equal `reference`'s.

    None where they differ, where anything fails, or where tiles are absent or of a kind never compared.
    """
    try:
        file = tifffile.TiffFile(path)
        array = _level(file, path, shape)
        if array is None:
            file.close()
            return None
        # Closed with the array that reads from it.
        weakref.finalize(array, file.close)
        for region in _samples(shape, tile=array.chunks[:2]):
            if not np.array_equal(array[region], reference(region)):
                logger.info("%s: tifffile gives other pixels than OpenSlide, which is used", path.name)
                return None
    except FAILURES as err:
        logger.debug("%s: tiles by OpenSlide, as tifffile fails: %s", path.name, err)
        return None
    return array


def _level(file: tifffile.TiffFile, path: Path, shape: tuple[int, int]) -> Any:
    for page in (p.aspage() for p in file.pages):
        if page.is_tiled and (page.imagelength, page.imagewidth) == shape:
            plain = page.axes == "YXS" and page.samplesperpixel == 3 and page.dtype == np.uint8
            known = page.compression == COMPRESSION.JPEG and page.photometric == PHOTOMETRIC.RGB
            check_tiles(path, page)
            if plain and known and all(page.databytecounts):
                return level_array(page, lock=threading.RLock(), absent=255)
            return None
    return None


def _samples(shape: tuple[int, int], *, tile: tuple[int, int]) -> list[Region]:
    counts = [-(-n // t) for n, t in zip(shape, tile, strict=True)]
    places = {(0, 0), (counts[0] // 2, counts[1] // 2), (counts[0] - 1, counts[1] - 1)}
    return [
        tuple(slice(i * t, min((i + 1) * t, n)) for i, t, n in zip(at, tile, shape, strict=True))
        for at in sorted(places)
    ]
