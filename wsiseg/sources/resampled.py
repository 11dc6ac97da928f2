"""An image at the pixel size that a model wants, from the best level of its pyramid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import SourceError
from wsiseg.geometry import Geometry, Region, clip
from wsiseg.resample import mix, taps
from wsiseg.sources.base import Array, Pixels, Source, everywhere, inside_part, pad_outside

logger = logging.getLogger(__name__)

AS_IT_IS = 0.05
"""A level whose pixels differ by less (relative) is used as it is."""


class ResampledSource:
    """`source` on another grid over the same extent, mixed with a triangle filter."""

    def __init__(self, source: Source, geometry: Geometry) -> None:
        self._source = source
        self.geometry = geometry
        self.num_channels = source.num_channels
        self.dtype, self.outside = source.dtype, source.outside
        self.format = source.format
        self.block = tuple(min(512, n) for n in geometry.shape)

    @property
    def levels(self) -> Sequence[Source]:
        return (self,)

    def read(self, region: Region) -> Pixels:
        placed = inside_part(region, self.geometry)
        if any(s.stop <= s.start for s in placed):
            empty = np.empty((self.num_channels, *(s.stop - s.start for s in placed)), self.dtype)
            return self._pad(Pixels(empty, everywhere(placed)), placed=placed, region=region)
        shape, from_shape = self.geometry.shape, self._source.geometry.shape
        all_taps = [
            taps(part, size=n, from_size=m) for part, n, m in zip(placed, shape, from_shape, strict=True)
        ]
        wanted = tuple(t.support for t in all_taps)
        pixels = self._source.read(wanted)
        values = pixels.values.astype(np.float32)
        for axis, (axis_taps, part) in enumerate(zip(all_taps, wanted, strict=True)):
            values = mix(values, axis_taps, axis=axis + 1, start=part.start)
        valid = everywhere(placed)
        if not pixels.all_valid:
            # A pixel is as valid as all that it was mixed from.
            share = pixels.valid.astype(np.float32)
            for axis, (axis_taps, part) in enumerate(zip(all_taps, wanted, strict=True)):
                share = mix(share, axis_taps, axis=axis, start=part.start)
            valid = share > 1 - 1e-4
        return self._pad(Pixels(self._typed(values), valid), placed=placed, region=region)

    def _typed(self, values: NDArray[np.float32]) -> Array:
        """Mixed values in the image's own type."""
        if self.dtype.kind not in "iu":
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(self.dtype)

    def _pad(self, pixels: Pixels, *, placed: Region, region: Region) -> Pixels:
        return pad_outside(pixels, placed=placed, region=region, fill=self.outside)

    def support(self, region: Region) -> Region:
        """Region of the underlying source that a region is made from."""
        placed = clip(region, self.geometry.shape)
        return tuple(
            taps(part, size=n, from_size=m).support
            for part, n, m in zip(placed, self.geometry.shape, self._source.geometry.shape, strict=True)
        )


@dataclass(frozen=True)
class LevelChoice:
    """The level to read, whether it must be resampled, and a sentence where it is not exact."""

    level: Source
    geometry: Geometry
    remark: str = ""

    @property
    def resampled(self) -> bool:
        """True where pixels have to be mixed."""
        return self.level.geometry.shape != self.geometry.shape


def choose_level(
    source: Source, *, spacing: float | tuple[float, ...] | None, allow_upsampling: bool = False
) -> LevelChoice:
    """The level and grid at which a model of pixel size `spacing` sees a source.

    The coarsest level that is no coarser than wanted; as it is where it differs by under 5 %. Raises
    SourceError for a slide coarser than the model's pixels, unless allowed; volumes, whose slices are
    often far apart, are enlarged as they need.
    """
    finest = source.geometry
    if spacing is None:
        return LevelChoice(source, finest)
    wanted = spacing if isinstance(spacing, tuple) else (spacing,) * len(finest.shape)

    def ratios(geometry: Geometry) -> list[float]:
        return [s / w for s, w in zip(geometry.spacing, wanted, strict=True)]

    if finest.axes == "yx" and max(ratios(finest)) > 1 + AS_IT_IS and not allow_upsampling:
        raise SourceError(
            f"the image has pixels of {max(finest.spacing):.4g} {finest.unit}, coarser than the "
            f"{max(wanted):.4g} that the model was trained at; choose a model for this resolution, or "
            "use --allow-upsampling to enlarge the image"
        )
    fine_enough = [level for level in source.levels if max(ratios(level.geometry)) <= 1 + AS_IT_IS]
    level = fine_enough[-1] if fine_enough else source
    difference = max(abs(r - 1) for r in ratios(level.geometry))
    shown, of_model = _words(level.geometry.spacing), _words(wanted)
    if difference < AS_IT_IS:
        remark = (
            ""
            if difference < 1e-6
            else (
                f"pixels of {shown} {finest.unit} are used as they are: {100 * difference:.2g} % from "
                f"the model's {of_model}"
            )
        )
        return LevelChoice(level, level.geometry, remark)
    remark = f"resampled from {shown} to {of_model} {finest.unit}"
    return LevelChoice(level, finest.at_spacing(wanted), remark)


def _words(spacing: tuple[float, ...]) -> str:
    """A pixel size in short: one figure where all axes have the same."""
    sizes = [f"{s:.4g}" for s in spacing]
    return sizes[0] if len(set(sizes)) == 1 else " x ".join(sizes)


def at_level(choice: LevelChoice, level: Source) -> Source:
    """`level` (the chosen one, perhaps cached) on the chosen grid."""
    return ResampledSource(level, choice.geometry) if choice.resampled else level
