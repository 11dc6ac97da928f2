"""What every image looks like to the rest of the program."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import MissingSpacing, SourceError
from wsiseg.geometry import Geometry, Region, clip, is_empty, region_shape, relative_to

WHITE = 255
"""What lies outside a slide looks like glass."""

MOST_PIXELS = 10**12
"""Of an image: a glass of 75 mm x 26 mm at 0.1 µm has 2e11, a volume of 2048 voxels a side 1e10."""
MOST_TILE_PX = 1 << 30
"""Of a stored tile, strip or chunk: it is decoded as a whole, into 3 GB where it is RGB."""
MOST_TILES = 1 << 27
"""Of an image: of the largest one in tiles of 256 x 256 there are a tenth of that."""
LARGEST_PIXEL_UM = 1e6
"""What states more, or what is no number, states nothing."""
MOST_LEVELS = 64
"""Of a pyramid: halved so often, no image has a pixel left."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Pixels:
    """A piece of an image.

    `values` has shape (C, *region); `valid` has shape (*region) and is False where the file could
    not be decoded. Pixels outside the image are background and valid.
    """

    values: Array
    valid: NDArray[np.bool_]

    @property
    def all_valid(self) -> bool:
        """True where every pixel could be decoded."""
        return all_true(self.valid)


class Source(Protocol):
    """A read-only image at one resolution."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def num_channels(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values: uint8 for slides, what the file holds for volumes."""
        ...

    @property
    def outside(self) -> int:
        """The value of every channel outside the image."""
        ...

    @property
    def block(self) -> tuple[int, ...]:
        """Reads aligned to this many pixels per axis decode each stored tile once."""
        ...

    @property
    def levels(self) -> Sequence[Source]:
        """The same image at the resolutions that the file holds, this one first."""
        ...

    @property
    def format(self) -> str:
        """Name of the file format, for people."""
        ...

    def read(self, region: Region) -> Pixels:
        """Values (C, *region) and validity (*region); the region may stick out of the image."""
        ...


def everywhere(region: Region) -> NDArray[np.bool_]:
    """A validity mask that is True everywhere and takes no memory."""
    return np.broadcast_to(np.True_, region_shape(region))


def all_true(mask: NDArray[np.bool_]) -> bool:
    """True if every entry is, without looking at each of a mask that `everywhere` made."""
    if mask.size and not any(mask.strides):
        return bool(mask.flat[0])
    return bool(mask.all())


UINT8: np.dtype[Any] = np.dtype(np.uint8)


def channels_last(
    channels: int, shape: tuple[int, ...], *, fill: int = WHITE, dtype: np.dtype[Any] = UINT8
) -> Array:
    """An array (C, *shape) whose channels lie next to each other in memory.

    Networks run fastest on this layout, and image files decode to it.
    """
    return np.moveaxis(np.full((*shape, channels), fill, dtype), -1, 0)


def pad_outside(inside: Pixels, *, placed: Region, region: Region, fill: int = WHITE) -> Pixels:
    """Pixels of `region`, of which `inside` covers the part `placed`; the rest is background."""
    if placed == region:
        return inside
    shape = region_shape(region)
    values = channels_last(inside.values.shape[0], shape, fill=fill, dtype=inside.values.dtype)
    if is_empty(placed):
        return Pixels(values, everywhere(region))
    at = relative_to(placed, region)
    values[(slice(None), *at)] = inside.values
    if inside.all_valid:
        return Pixels(values, everywhere(region))
    valid = np.ones(region_shape(region), bool)
    valid[at] = inside.valid
    return Pixels(values, valid)


def inside_part(region: Region, geometry: Geometry) -> Region:
    """The part of a region inside a grid; empty where there is none."""
    return clip(region, geometry.shape)


def to_rgb_uint8(array: Array, *, name: str) -> Array:
    """(*axes, C) uint8 RGB from grey, grey with alpha, RGB or RGBA; alpha is laid over white.

    Raises ValueError for another type or number of channels.
    """
    if array.dtype != np.uint8:
        raise ValueError(f"{name} has {array.dtype} pixels; 8 bits a channel are supported")
    if array.ndim == 2:
        array = array[..., None]
    channels = array.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"{name} has {channels} channels; grey, RGB and RGBA are supported")
    if channels in (2, 4):
        alpha = array[..., -1:]
        color = array[..., :-1]
        if (alpha == 255).all():
            array = color
        else:
            mixed = color.astype(np.uint16) * alpha + WHITE * (255 - alpha.astype(np.uint16))
            array = ((mixed + 127) // 255).astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def tile_by_tile(
    region: Region,
    *,
    tile: Sequence[int],
    channels: int,
    decode: Callable[[Region], Array | None],
    dtype: np.dtype[Any] = UINT8,
) -> Pixels:
    """What can be decoded of a region inside the image, on the file's own grid of tiles.

    `decode(part)` gives (C, *part), or None where that fails: such pixels are background, not valid.
    """
    values = channels_last(channels, region_shape(region), dtype=dtype)
    valid = np.zeros(region_shape(region), bool)
    grid = [range(s.start // t, -(-s.stop // t)) for s, t in zip(region, tile, strict=True)]
    for index in itertools.product(*grid):
        part = tuple(
            slice(max(i * t, s.start), min((i + 1) * t, s.stop))
            for i, t, s in zip(index, tile, region, strict=True)
        )
        decoded = decode(part)
        if decoded is not None:
            at = relative_to(part, region)
            values[(slice(None), *at)] = decoded
            valid[at] = True
    return Pixels(values, valid)


def check_size(path: Path, shape: Sequence[int], *, tile: Sequence[int] | None = None) -> None:
    """Raises SourceError for an image, or a tile, of more pixels than any real one has."""
    sides = " x ".join(map(str, shape))
    pixels = math.prod(map(int, shape))
    if min(shape) < 1 or pixels > MOST_PIXELS:
        raise SourceError(f"{path} claims {sides} pixels; images of 1 to {MOST_PIXELS:.0e} are read")
    if tile is None:
        return
    each = math.prod(map(int, tile))
    if each < 1 or min(each, pixels) > MOST_TILE_PX:
        raise SourceError(
            f"{path} claims tiles of {' x '.join(map(str, tile))} pixels; tiles of 1 to {MOST_TILE_PX} are "
            "read: convert it to a tiled TIFF"
        )
    if math.prod(-(-n // t) for n, t in zip(shape, tile, strict=True)) > MOST_TILES:
        raise SourceError(f"{path} claims {sides} pixels in more than {MOST_TILES} tiles; convert it")


def known_spacing(path: Path, mpp: float | None, stated: tuple[float, float] | None) -> tuple[float, float]:
    """Pixel size (µm, y then x): `mpp` if given, else what the file states. Raises MissingSpacing."""
    if mpp is not None:
        return (mpp, mpp)
    if stated is not None and not all(0 < s < LARGEST_PIXEL_UM for s in stated):
        stated = None
    if stated is None:
        raise MissingSpacing(
            f"{path} does not state its pixel size; give it in µm per pixel "
            "with --mpp, for example --mpp 0.25"
        )
    return stated
