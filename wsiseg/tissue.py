"""Where there is tissue: a mask on a fixed coarse grid, from colours alone.

Thresholds are fixed differences from the colour of the glass, not found by splitting a histogram:
a blank slide has no second class to find, and pen marks would shift one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import isotropic_dilation, remove_small_objects

from wsiseg.geometry import Region, clip, is_empty
from wsiseg.resample import nearest, sample
from wsiseg.windows import slabs

MIN_CHROMA = 14.0
"""Difference between the largest and smallest channel beyond the glass's own (0..255)."""
MIN_DARKER = 12.0
"""How much darker than glass coloured pixels must be (0..255): light reflexes are coloured too."""
PEN_MARGIN = 25.0
"""Red below green by more than this is ink: blue, green and cyan pens; stains do not do that."""
MIN_OBJECT_UM2 = 1_000.0
"""Coloured specks up to this size are dust."""
MAX_HOLE_UM2 = 250_000.0
"""Holes up to this size (lumina, fat) belong to the tissue round them."""

SAMPLE_PX = 500_000
"""Pixels from which the colour of the glass is taken."""
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class TissueMask:
    """Foreground on a coarse grid that covers the same extent as the image."""

    grid: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """Part of the image that is tissue, 0..1."""
        return float(self.grid.mean())

    def any_in(self, region: Region, *, shape: tuple[int, ...]) -> bool:
        """True where a region of an image of `shape` over the same extent touches tissue."""
        inside = clip(region, shape)
        if is_empty(inside):
            return False
        index = []
        for part, size, from_size in zip(inside, shape, self.grid.shape, strict=True):
            first, last = (
                int(nearest(slice(i, i + 1), size=size, from_size=from_size)[0])
                for i in (part.start, part.stop - 1)
            )
            index.append(slice(first, last + 1))
        return bool(self.grid[tuple(index)].any())

    def at(self, region: Region, *, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Foreground of each pixel of a region of an image of `shape`, by pixel centres."""
        values = sample(self.grid.view(np.uint8), region, shape=shape, from_shape=self.grid.shape)
        return values.view(np.bool_)


def find_tissue(rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (*axes) of (3, *axes) that are stained; what could not be read counts as tissue."""
    glass = glass_color(rgb, valid)
    stained = np.empty(valid.shape, bool)
    for rows in slabs(valid.shape[0], rows=ROWS_AT_ONCE):  # floats of a few rows only
        stained[rows.rows] = _stained(rgb[:, rows.rows].astype(np.float32), glass)
    return stained | ~valid


def _stained(colors: NDArray[np.float32], glass: NDArray[np.float32]) -> NDArray[np.bool_]:
    red, green, blue = colors
    chroma = colors.max(axis=0) - colors.min(axis=0)
    ink = (green - red > PEN_MARGIN) | (green - np.maximum(red, blue) > MIN_CHROMA)
    colored = chroma - (glass.max() - glass.min()) > MIN_CHROMA
    darker = glass.mean() - colors.mean(axis=0) > MIN_DARKER
    return np.asarray(colored & darker & ~ink, bool)


def glass_color(rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Median colour (3,) of the bright and nearly colourless pixels; white where there are few."""
    step = max(1, round((valid.size / SAMPLE_PX) ** (1 / valid.ndim)))
    thinned = (slice(None, None, step),) * valid.ndim
    colors = rgb[(slice(None), *thinned)].astype(np.float32)
    brightness = colors.mean(axis=0)
    chroma = colors.max(axis=0) - colors.min(axis=0)
    candidates = valid[thinned] & (chroma < 20) & (brightness > 150)
    if candidates.sum() < 0.002 * candidates.size:
        return np.full(3, 245.0, np.float32)
    bright = candidates & (brightness >= np.percentile(brightness[candidates], 50))
    return np.asarray(np.median(colors[:, bright], axis=1), np.float32)


def tissue_mask(
    rgb: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    *,
    spacing_um: float,
    margin_um: float,
) -> TissueMask:
    """Tissue in a coarse image (3, *axes), its small holes filled, dilated by `margin_um`."""
    stained = find_tissue(rgb, valid)
    speck = int(MIN_OBJECT_UM2 / spacing_um**2)
    if speck > 0:
        stained = remove_small_objects(stained, max_size=speck) | ~valid
    if not stained.any():
        return TissueMask(stained)  # distances to nothing, of which dilation is made, are not defined
    hole = int(MAX_HOLE_UM2 / spacing_um**2)
    # Glass that reaches the border of the image is not a hole, however small its piece there.
    enclosed = ndimage.binary_fill_holes(stained) & ~stained
    large = remove_small_objects(enclosed, max_size=hole) if hole > 0 else enclosed
    filled = stained | (enclosed & ~large)
    return TissueMask(isotropic_dilation(filled, radius=margin_um / spacing_um))
