"""The seam between the pipeline and whatever turns rows of an image into rows of a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsiseg.geometry import Region
from wsiseg.resample import needed_rows, sample
from wsiseg.sources.cached import CachedSource
from wsiseg.windows import Slab

Wanted = Callable[[Region], bool]
"""Says whether a region (of the model's grid) needs to be computed."""


@dataclass(frozen=True)
class Rows:
    """Finished rows of the mask on the model's grid: class indices, VOID where not decodable.

    Where nothing was wanted the values mean nothing.
    """

    rows: slice
    mask: NDArray[np.uint8]  # (rows, ...)


@dataclass
class Work:
    """What the ledger keeps of an executor's work.

    Pixels of the image that went through the network, how many of them not for the first time, and
    what the network said of whole windows.
    """

    computed: int = 0
    repeated: int = 0
    windows: list[dict[str, Any]] = field(default_factory=list)
    """For each window its `index`, its `core` [[start, stop], ...] on the model's grid, and the values."""

    def take(self) -> dict[str, Any]:
        """What was gathered since the last call."""
        taken: dict[str, Any] = {"computed": self.computed, "repeated": self.repeated}
        if self.windows:
            taken["windows"] = self.windows
        self.computed, self.repeated, self.windows = 0, 0, []
        return taken


class Executor(Protocol):
    """Rows of the image in, rows of the finished mask out."""

    work: Work

    def first_row_read(self, row: int) -> int:
        """No row of the source above this one is read once `run` has given all rows before `row`."""
        ...

    def run(self, source: CachedSource, *, first_row: int, wanted: Wanted) -> Iterator[Rows]:
        """Rows in order, without gaps, to the last; the first piece begins at or above `first_row`."""
        ...


def to_level0(
    pieces: Iterator[Rows], slabs: Sequence[Slab], *, shape: tuple[int, ...], from_shape: tuple[int, ...]
) -> Iterator[tuple[Slab, NDArray[np.uint8]]]:
    """Each slab of the level-0 mask (a grid of `shape`), as soon as its rows of the model's grid are there.

    Class indices are taken by pixel centres; what a later slab needs again is carried over.
    """
    held: list[NDArray[np.uint8]] = []
    top = stop = 0
    for slab in slabs:
        need = needed_rows(slab.rows, size=shape[0], from_size=from_shape[0])
        while not held or stop < need.stop:
            piece = next(pieces)
            if not held:
                top = piece.rows.start
            held.append(piece.mask)
            stop = piece.rows.stop
        joined = np.concatenate(held) if len(held) > 1 else held[0]
        drop = min(max(0, need.start - top), len(joined))
        held, top = [joined[drop:]], top + drop
        whole = (slab.rows, *(slice(0, n) for n in shape[1:]))
        mask = sample(held[0], whole, shape=shape, from_shape=from_shape, first_row=top)
        # The caller writes on it, and what is held may share its memory.
        yield slab, mask.copy()
