"""An image at the pixel size that a model wants, from the best level of its pyramid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsiseg.errors import SourceError
from wsiseg.geometry import Geometry, Region, clip
from wsiseg.resample import mix, taps
from wsiseg.sources.base import Pixels, Source, everywhere, inside_part, pad_outside

logger = logging.getLogger(__name__)

AS_IT_IS = 0.05
"""A level whose pixels differ by less (relative) is used as it is."""


class ResampledSource:
    """`source` on another grid over the same extent, mixed with a triangle filter."""

    def __init__(self, source: Source, geometry: Geometry) -> None:
        self._source = source
        self.geometry = geometry
        self.num_channels = source.num_channels
        self.format = source.format
        self.block = tuple(min(512, n) for n in geometry.shape)

    @property
    def levels(self) -> Sequence[Source]:
        return (self,)

    def read(self, region: Region) -> Pixels:
        placed = inside_part(region, self.geometry)
        if any(s.stop <= s.start for s in placed):
            empty = np.empty((self.num_channels, *(s.stop - s.start for s in placed)), np.uint8)
            return pad_outside(Pixels(empty, everywhere(placed)), placed=placed, region=region)
        shape, from_shape = self.geometry.shape, self._source.geometry.shape
        all_taps = [
            taps(part, size=n, from_size=m) for part, n, m in zip(placed, shape, from_shape, strict=True)
        ]
        wanted = tuple(t.support for t in all_taps)
        pixels = self._source.read(wanted)
        values = pixels.values.astype(np.float32)
        for axis, (axis_taps, part) in enumerate(zip(all_taps, wanted, strict=True)):
            values = mix(values, axis_taps, axis=axis + 1, start=part.start)
        rounded = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        valid = everywhere(placed)
        if not pixels.all_valid:
            # A pixel is as valid as all that it was mixed from.
            share = pixels.valid.astype(np.float32)
            for axis, (axis_taps, part) in enumerate(zip(all_taps, wanted, strict=True)):
                share = mix(share, axis_taps, axis=axis, start=part.start)
            valid = share > 1 - 1e-4
        return pad_outside(Pixels(rounded, valid), placed=placed, region=region)

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


def choose_level(source: Source, *, spacing: float | None, allow_upsampling: bool = False) -> LevelChoice:
    """The level and grid at which a model of pixel size `spacing` sees a source.

    The coarsest level that is no coarser than wanted; as it is where it differs by under 5 %.
    Raises SourceError for a source coarser than the model's pixels, unless allowed.
    """
    finest = source.geometry
    if spacing is None:
        return LevelChoice(source, finest)
    wanted = (spacing,) * len(finest.shape)
    excess = max(finest.spacing) / spacing
    if excess > 1 + AS_IT_IS and not allow_upsampling:
        raise SourceError(
            f"the image has pixels of {max(finest.spacing):.4g} {finest.unit}, coarser than the "
            f"{spacing:.4g} that the model was trained at; choose a model for this resolution, or "
            "use --allow-upsampling to enlarge the image"
        )
    fine_enough = [
        level for level in source.levels if max(s / spacing for s in level.geometry.spacing) <= 1 + AS_IT_IS
    ]
    level = fine_enough[-1] if fine_enough else source
    difference = max(abs(s / spacing - 1) for s in level.geometry.spacing)
    if difference < AS_IT_IS:
        shown = max(level.geometry.spacing)
        remark = (
            ""
            if difference < 1e-6
            else (
                f"pixels of {shown:.4g} {finest.unit} are used as they are: {100 * difference:.2g} % from "
                f"the model's {spacing:.4g}"
            )
        )
        return LevelChoice(level, level.geometry, remark)
    geometry = finest.at_spacing(wanted)
    return LevelChoice(
        level, geometry, f"resampled from {max(level.geometry.spacing):.4g} to {spacing:.4g} {finest.unit}"
    )


def at_level(choice: LevelChoice, level: Source) -> Source:
    """`level` (the chosen one, perhaps cached) on the chosen grid."""
    return ResampledSource(level, choice.geometry) if choice.resampled else level
