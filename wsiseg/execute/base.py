"""The seam between the pipeline and whatever turns rows of an image into rows of a mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wsiseg.classes import VOID
from wsiseg.execute.decision import Confidence
from wsiseg.geometry import Region
from wsiseg.resample import mix, mixed_rows, needed_rows, sample, taps
from wsiseg.sources.cached import CachedSource
from wsiseg.windows import Slab

Wanted = Callable[[Region], bool]
"""Says whether a region (of the model's grid) needs to be computed."""


@dataclass(frozen=True)
class Rows:
    """Finished rows of the mask on the model's grid: class indices, VOID where not decodable.

    `scores` and `confidence` are there if the executor was made to keep them. Where nothing was wanted the
    values mean nothing.
    """

    rows: slice
    mask: NDArray[np.uint8]  # (rows, ...)
    scores: NDArray[np.float32] | None = None  # (K, rows, ...)
    confidence: NDArray[np.uint8] | None = None  # (rows, ...)


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


MIX_BYTES = 64 << 20
"""Scores on the level-0 grid at a time."""


class _Held:
    """Rows of the model's grid that a slab still needs."""

    def __init__(self) -> None:
        self._pieces: list[Rows] = []

    @property
    def top(self) -> int:
        return int(self._pieces[0].rows.start)

    @property
    def stop(self) -> int:
        return self._pieces[-1].rows.stop if self._pieces else -1

    def add(self, piece: Rows) -> None:
        self._pieces.append(piece)

    def release(self, *, before: int) -> None:
        """Let go of the pieces that lie wholly above row `before`."""
        self._pieces = [piece for piece in self._pieces if piece.rows.stop > before]

    def join(self, *, before: int) -> Rows:
        """All that is held, in one piece, without the rows above `before`."""
        rows = slice(min(max(self.top, before), self.stop), self.stop)
        drop = rows.start - self.top
        mask = _joined([p.mask for p in self._pieces])
        scores = _joined([p.scores for p in self._pieces if p.scores is not None], axis=1)
        confidence = _joined([p.confidence for p in self._pieces if p.confidence is not None])
        assert mask is not None  # every piece has one
        self._pieces = [
            Rows(
                rows,
                mask[drop:],
                None if scores is None else scores[:, drop:],
                None if confidence is None else confidence[drop:],
            )
        ]
        return self._pieces[0]


def _joined(parts: Sequence[NDArray[Any]], *, axis: int = 0) -> NDArray[Any] | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return np.concatenate(parts, axis=axis)


def rows_for(part: slice, *, size: int, from_size: int, scores: bool) -> slice:
    """Rows of the model's grid that rows `part` of level 0 are made from."""
    need = needed_rows(part, size=size, from_size=from_size)
    if not scores:
        return need
    mixed = mixed_rows(part, size=size, from_size=from_size)
    return slice(min(need.start, mixed.start), max(need.stop, mixed.stop))


class OnLevel0(NamedTuple):
    """A slab of the level-0 mask, and of the confidence if it is asked for; the taker may write on both."""

    slab: Slab
    mask: NDArray[np.uint8]
    confidence: NDArray[np.uint8] | None


def to_level0(
    pieces: Iterator[Rows],
    slabs: Sequence[Slab],
    *,
    shape: tuple[int, ...],
    from_shape: tuple[int, ...],
    scores: bool = False,
    confidence: Confidence | None = None,
) -> Iterator[OnLevel0]:
    """Each slab of the level-0 mask (a grid of `shape`), as soon as its rows of the model's grid are there.

    Class indices are taken by pixel centres, or with `scores` are those of the highest mixed score; what a
    later slab needs again is carried over. The confidence is that of the pieces, taken in the same way, or
    with `scores` what `confidence` makes of the mixed ones.
    """
    held = _Held()
    for slab in slabs:
        need = rows_for(slab.rows, size=shape[0], from_size=from_shape[0], scores=scores)
        held.release(before=need.start)
        while held.stop < need.stop:
            held.add(next(pieces))
        have = held.join(before=need.start)
        made = _by_centres(have, slab, shape=shape, from_shape=from_shape)
        if scores:
            if confidence is not None:
                made = made._replace(confidence=np.empty_like(made.mask))
            _choose_by_scores(made, have, shape=shape, from_shape=from_shape, confidence=confidence)
        yield made
        del have, made  # before more rows are computed


def _by_centres(have: Rows, slab: Slab, *, shape: tuple[int, ...], from_shape: tuple[int, ...]) -> OnLevel0:
    """What a slab takes of the model's grid, pixel by pixel."""
    whole = (slab.rows, *(slice(0, n) for n in shape[1:]))

    def taken(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        found = sample(values, whole, shape=shape, from_shape=from_shape, first_row=have.rows.start)
        # The caller writes on it, and what is held may share its memory.
        return found.copy()

    return OnLevel0(slab, taken(have.mask), None if have.confidence is None else taken(have.confidence))


def _choose_by_scores(
    made: OnLevel0,
    have: Rows,
    *,
    shape: tuple[int, ...],
    from_shape: tuple[int, ...],
    confidence: Confidence | None,
) -> None:
    """Replace class indices by those of the highest score after mixing, except VOID; fill the confidence."""
    assert have.scores is not None
    rows = made.slab.rows
    count = max(1, MIX_BYTES // (4 * len(have.scores) * math.prod(shape[1:])))
    for start in range(rows.start, rows.stop, count):
        part = slice(start, min(start + count, rows.stop))
        used = mixed_rows(part, size=shape[0], from_size=from_shape[0])
        top = have.rows.start
        mixed = have.scores[:, used.start - top : used.stop - top]
        for axis, (size, from_size) in enumerate(zip(shape, from_shape, strict=True)):
            along = part if axis == 0 else slice(0, size)
            first = used.start if axis == 0 else 0
            mixed = mix(mixed, taps(along, size=size, from_size=from_size), axis=axis + 1, start=first)
        own = slice(part.start - rows.start, part.stop - rows.start)
        best = mixed.argmax(axis=0).astype(np.uint8)
        np.copyto(made.mask[own], best, where=made.mask[own] != VOID)
        if confidence is not None and made.confidence is not None:
            made.confidence[own] = confidence(torch.from_numpy(mixed)).numpy()
