"""What the tests of readers of images share: the pixels that are expected, and broken tiles."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsiseg.geometry import Region, region_shape
from wsiseg.sources import Source
from wsiseg.sources.base import Pixels

Rgb = NDArray[np.uint8]


def padded(image: Rgb, region: Region, *, outside: int = 255) -> Rgb:
    """The region of an image (C, *axes), white outside unless another value is given."""
    out = np.full((image.shape[0], *region_shape(region)), outside, image.dtype)
    places = [np.arange(s.start, s.stop) for s in region]
    inside = [np.flatnonzero((i >= 0) & (i < n)) for i, n in zip(places, image.shape[1:], strict=True)]
    channels = np.arange(image.shape[0])
    picked = image[np.ix_(channels, *(i[k] for i, k in zip(places, inside, strict=True)))]
    out[np.ix_(channels, *inside)] = picked
    return out


def assert_reads(
    source: Source, image: Rgb, region: Region, *, valid: NDArray[np.bool_] | None = None
) -> None:
    """The region holds the image's pixels, background outside; all valid unless another map is given."""
    pixels = source.read(region)
    np.testing.assert_array_equal(pixels.values, padded(image, region, outside=source.outside))
    assert pixels.values.dtype == np.uint8
    expected = np.ones(region_shape(region), bool) if valid is None else valid
    np.testing.assert_array_equal(pixels.valid, expected)
    assert pixels.all_valid == expected.all()


def around(shape: Sequence[int]) -> list[Region]:
    """Regions inside, over each border, round everything, and wholly outside of an image."""
    whole = tuple(slice(0, n) for n in shape)
    return [
        whole,
        tuple(slice(n // 3, n // 3 + 1 + k) for k, n in enumerate(shape)),
        tuple(slice(-3 - k, n // 2) for k, n in enumerate(shape)),
        tuple(slice(n // 2, n + 4 + k) for k, n in enumerate(shape)),
        tuple(slice(-2, n + 5) for n in shape),
        tuple(slice(n + 3, n + 7 + k) for k, n in enumerate(shape)),
        tuple(slice(-9, -4 - k) for k, _ in enumerate(shape)),
        (slice(2, 2), *whole[1:]),
    ]


def rgb_last(image: Rgb) -> Rgb:
    return np.ascontiguousarray(np.moveaxis(image, 0, -1))


def spoil(path: Path, *, page: int, tile: int) -> None:
    """Overwrite one stored tile, so that it is no JPEG any more."""
    with tifffile.TiffFile(path) as file:
        where = file.pages[page].dataoffsets[tile]
        length = file.pages[page].databytecounts[tile]
    with path.open("r+b") as stream:
        stream.seek(where)
        stream.write(bytes(length))


def spoilt_map(shape: Sequence[int], spoilt: Region, region: Region) -> NDArray[np.bool_]:
    """What can be read of a region of an image, one tile of which is broken."""
    y, x = np.ix_(*(np.arange(s.start, s.stop) for s in region))
    (rows, columns), (height, width) = spoilt, shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    broken = (y >= rows.start) & (y < rows.stop) & (x >= columns.start) & (x < columns.stop)
    return np.asarray(~(broken & inside))


def read_many(source: Source, regions: Sequence[Region], *, threads: int) -> list[Pixels]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(source.read, regions))


def write_reduced_pages(path: Path, image: Rgb, **options: Any) -> list[Rgb]:
    """A pyramid of top-level reduced pages, 0.4 µm by 0.25 µm, and a reduced page that is a label."""
    levels = [image, image[:, ::2, ::2], image[:, ::4, ::4]]
    with tifffile.TiffWriter(path) as writer:
        for n, level in enumerate(levels):
            writer.write(
                rgb_last(level),
                tile=(32, 48),
                photometric="rgb",
                resolution=(1e4 / 0.25 / 2**n, 1e4 / 0.4 / 2**n),
                resolutionunit="CENTIMETER",
                subfiletype=1 if n else 0,
                metadata=None,
                **options,
            )
        writer.write(np.zeros((64, 24, 3), np.uint8), photometric="rgb", subfiletype=1, metadata=None)
    return levels


def random_regions(data: st.DataObject, shape: Sequence[int], *, count: int) -> list[Region]:
    regions: list[Region] = []
    for _ in range(count):
        starts = [data.draw(st.integers(-6, n + 3)) for n in shape]
        regions.append(tuple(slice(a, a + data.draw(st.integers(0, 20))) for a in starts))
    return regions
