"""Windows over an image of any number of axes, and the weights with which they are stitched.

"Mechanical" functions work on one axis; a plan is a tuple of them. Windows all have one shape and
may stick out of the image; their cores partition it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsiseg.geometry import Region, clip


@dataclass(frozen=True)
class Window:
    """One piece of work: `read` (one shape for all) is seen, `core` (inside the image) is kept."""

    index: tuple[int, ...]
    read: Region
    core: Region


AtBorders = Literal["beyond", "inside", "smaller"]


@dataclass(frozen=True)
class WindowPlan:
    """Windows of `core` + 2 x `halo` pixels over an image of `shape`, one entry per axis.

    With `stride`, the network's output stride, cores and halos must be multiples of it: a window
    that starts off the network's grid of features gives another mask. At the borders of the image windows
    reach "beyond" them; or they are moved "inside", where the image (up to its next stride) is as large as
    a window; or moved and "smaller", with no more pixels than it takes to see a halo round each core. The
    last give a network the borders that one pass over the whole has. Raises ValueError.
    """

    shape: tuple[int, ...]
    core: tuple[int, ...]
    halo: tuple[int, ...]
    stride: int = 1
    at_borders: AtBorders = "beyond"

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.core) == len(self.halo):
            raise ValueError(
                f"shape {self.shape}, core {self.core} and halo {self.halo} need one entry per axis"
            )
        if min(self.core) < 1 or min(self.halo) < 0 or min(self.shape) < 1:
            raise ValueError(f"core {self.core} must be positive and halo {self.halo} not negative")
        for name, sizes in (("core", self.core), ("halo", self.halo)):
            if any(n % self.stride for n in sizes):
                raise ValueError(
                    f"{name} {sizes} must be multiples of the network's output stride {self.stride}"
                )

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of windows per axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.core, strict=True))

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Pixels that every window reads, per axis."""
        shape = []
        for core, halo, count, end in zip(self.core, self.halo, self.grid, self._ends, strict=True):
            halos = min(2, count - 1) if self.at_borders == "smaller" else 2
            size = core + halos * halo
            shape.append(min(size, end) if self.at_borders == "smaller" else size)
        return tuple(shape)

    @property
    def _ends(self) -> tuple[int, ...]:
        """Where a pass over the whole image would end, per axis: a whole number of strides."""
        return tuple(-(-n // self.stride) * self.stride for n in self.shape)

    def __len__(self) -> int:
        return math.prod(self.grid)

    def window(self, index: tuple[int, ...]) -> Window:
        """The window at a place of the grid."""
        core = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, self.core, strict=True))
        sides = zip(core, self.halo, self.window_shape, self._ends, strict=True)
        read = tuple(self._read(part, halo, size, end) for part, halo, size, end in sides)
        return Window(index=index, read=read, core=clip(core, self.shape))

    def _read(self, core: slice, halo: int, size: int, end: int) -> slice:
        start = core.start - halo
        if self.at_borders != "beyond" and size <= end:
            start = min(max(start, 0), end - size)
        return slice(start, start + size)

    def first_read(self, number: int) -> int:
        """First row that the windows of a row read."""
        return int(self.window((number, *(0 for _ in self.core[1:]))).read[0].start)

    def row(self, number: int) -> list[Window]:
        """All windows whose cores share one stretch of the first axis."""
        rest = itertools.product(*(range(n) for n in self.grid[1:]))
        return [self.window((number, *index)) for index in rest]

    def windows(self) -> Iterator[Window]:
        """All windows, the last axis fastest."""
        for number in range(self.grid[0]):
            yield from self.row(number)


def plan_of_patches(shape: tuple[int, ...], *, sides: tuple[int, ...]) -> WindowPlan:
    """Windows of given sides that overlap by a half, inside the image where it is as large as they are.

    Their cores are half as wide; with a taper of a halo the whole overlap is a cross-fade.
    """
    halo = tuple(side // 4 for side in sides)
    core = tuple(side - 2 * part for side, part in zip(sides, halo, strict=True))
    return WindowPlan(shape=shape, core=core, halo=halo, at_borders="inside")


def check_taper(plan: WindowPlan, taper: int) -> None:
    """Raises ValueError where a cross-fade of half-width `taper` is not possible."""
    if taper > min(plan.halo):
        raise ValueError(f"taper {taper} needs a halo of at least as many pixels, got {plan.halo}")
    if 2 * taper > min(plan.core):
        raise ValueError(f"taper {taper} needs a core of at least {2 * taper} pixels, got {plan.core}")


def footprint(plan: WindowPlan, window: Window, *, taper: int) -> Region:
    """Pixels to which a window contributes: its core, and `taper` more across each inner border."""
    sides = []
    for i, n, core, size in zip(window.index, plan.grid, window.core, plan.shape, strict=True):
        start = core.start - (taper if i > 0 else 0)
        stop = core.stop + (taper if i + 1 < n else 0)
        sides.append(slice(start, min(stop, size)))
    return tuple(sides)


def axis_weights(plan: WindowPlan, window: Window, *, axis: int, taper: int) -> NDArray[np.float32]:
    """Weights of a window along one axis of its footprint.

    Across a border the two windows' ramps are w and 1 - w, taken at pixel centres, so weights add up
    to one by construction; at the border of the image there is no ramp.
    """
    place = footprint(plan, window, taper=taper)[axis]
    core, i = window.core[axis], window.index[axis]
    weights = np.ones(place.stop - place.start, np.float32)
    if taper == 0:
        return weights
    rising = (np.arange(2 * taper, dtype=np.float32) + np.float32(0.5)) / np.float32(2 * taper)
    if i > 0:
        head = min(2 * taper, len(weights))
        weights[:head] = rising[:head]
    if i + 1 < plan.grid[axis]:
        tail = place.stop - (core.stop - taper)  # shorter than a ramp where the image ends
        weights[-tail:] = np.float32(1) - rising[:tail]
    return weights


@dataclass(frozen=True)
class Slab:
    """Rows along the first axis that are written, and resumed, in one piece."""

    index: int
    rows: slice


def slabs(height: int, *, rows: int) -> list[Slab]:
    """The slabs that partition `height` rows.

    >>> [s.rows for s in slabs(5, rows=2)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    if rows < 1:
        raise ValueError(f"a slab needs at least one row, got {rows}")
    starts = range(0, height, rows)
    return [Slab(i, slice(a, min(a + rows, height))) for i, a in enumerate(starts)]
