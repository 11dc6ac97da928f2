"""Outlines of the 4-connected pieces of a mask along the edges of its pixels, exact, strip by strip.

What is kept of a strip is its runs (pixels of one class side by side) and its corners, so memory grows with
how much the mask holds and not with its size. Every outline goes through corners in turn by a horizontal and
a vertical edge. Those of a piece, sorted along each row, are the ends of its horizontal edges, two by two,
and along each column those of its vertical ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wsiseg.classes import VOID

Mask = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Corners = NDArray[np.int32]
STRIP_PX = 1 << 22
"""Pixels that are looked at in one piece."""
CORNERS_AT_ONCE = 1 << 18
"""That are joined to rings at a time: each takes some 200 bytes then."""


@dataclass(frozen=True)
class Piece:
    """A 4-connected piece of one class. `rings` are corners (n, 2) as x, y: the outside, then the holes.

    In rings, drawn with y downwards, the piece lies on the right; none touches itself, and two of a piece
    meet in single points only.
    """

    value: int
    pixels: int
    rings: tuple[Corners, ...]


@dataclass
class Runs:
    """Pixels of one value side by side in a row: `starts` are pixel numbers, row by row, ascending."""

    width: int
    starts: Numbers
    values: Mask
    stop: int
    """Number of the pixel after the last."""

    @classmethod
    def of(cls, mask: Mask, *, first: int = 0) -> Runs:
        """Those of rows (y, x), the first pixel of which has the number `first`."""
        begins = np.ones(mask.shape, bool)
        np.not_equal(mask[:, 1:], mask[:, :-1], out=begins[:, 1:])
        places = np.flatnonzero(begins)
        return cls(mask.shape[1], places + first, mask.reshape(-1)[places], first + mask.size)

    @classmethod
    def joined(cls, parts: list[Runs]) -> Runs:
        """Runs of strips that follow one another."""
        starts = np.concatenate([p.starts for p in parts])
        return cls(parts[0].width, starts, np.concatenate([p.values for p in parts]), parts[-1].stop)

    @property
    def lengths(self) -> Numbers:
        """Pixels of every run."""
        return np.diff(self.starts, append=self.stop)

    def at(self, pixels: Numbers) -> Numbers:
        """The run of every pixel."""
        return np.searchsorted(self.starts, pixels, side="right") - 1

    def pieces(self) -> Numbers:
        """The number of the 4-connected piece of every run."""
        above = self.starts[self.starts + self.width < self.stop]
        below = self.starts[self.starts - self.width >= self.starts[0]]
        # Where one of two rows begins a run, both have one: these pairs are all that touch.
        a = np.concatenate([self.at(above), self.at(below - self.width)])
        b = np.concatenate([self.at(above + self.width), self.at(below)])
        same = self.values[a] == self.values[b]
        return _groups(a[same], b[same], count=len(self.starts))


@dataclass
class Tracer:
    """Collects the strips of a mask `width` pixels wide, from `top` on; VOID is outside of everything."""

    width: int
    top: int = 0
    _runs: list[Runs] = field(default_factory=list)
    _corners: list[Corners] = field(default_factory=list)
    _last: Mask | None = None
    _rows: int = 0

    def add(self, rows: Mask) -> None:
        """Take the next rows (n, width)."""
        step = max(1, STRIP_PX // self.width)
        for start in range(0, len(rows), step):
            strip = rows[start : start + step]
            self._runs.append(Runs.of(strip, first=self._rows * self.width))
            self._look(strip)
            self._rows += len(strip)

    def _look(self, strip: Mask) -> None:
        padded = np.full((len(strip) + 1, self.width + 2), VOID, np.uint8)
        padded[1:, 1:-1] = strip
        if self._last is not None:
            padded[0, 1:-1] = self._last
        self._corners.append(_corners(padded, top=self._rows))
        self._last = strip[-1].copy() if len(strip) else self._last

    def pieces(self, *, min_pixels: float = 0) -> Iterator[Piece]:
        """The pieces of all that was added, those below `min_pixels` left out. To be called once."""
        if not self._runs:
            return
        self._look(np.full((1, self.width), VOID, np.uint8))
        runs, corners = Runs.joined(self._runs), np.concatenate(self._corners)
        self._runs, self._corners = [], []
        piece = runs.pieces()
        pixels = np.bincount(piece, runs.lengths)
        value = np.empty(len(pixels), np.uint8)
        value[piece] = runs.values
        number = piece[_owners(runs, corners)].astype(np.int32)
        del runs, piece
        kept = np.flatnonzero(pixels[number] >= min_pixels)
        kept = kept[np.argsort(number[kept], kind="stable")]
        corners, number = corners[kept], number[kept]
        for part in _parts(number):
            for which, rings in _traced(corners[part], number[part]):
                outside, *holes = (ring + np.array([0, self.top], np.int32) for ring in rings)
                ordered = (outside, *(hole[::-1] for hole in holes))
                yield Piece(int(value[which]), int(pixels[which]), ordered)


def _owners(runs: Runs, corners: Corners) -> Numbers:
    """The run of the pixel that each corner belongs to."""
    y, x, right, below = corners.T
    return runs.at((y - 1 + below).astype(np.int64) * runs.width + (x - 1 + right))


def _parts(number: Corners) -> Iterator[slice]:
    """Slices of about CORNERS_AT_ONCE corners that cut no piece; corners come sorted by piece."""
    start = 0
    while start < len(number):
        last = number[min(start + CORNERS_AT_ONCE, len(number)) - 1]
        stop = int(np.searchsorted(number, last, side="right"))
        yield slice(start, stop)
        start = stop


def _traced(corners: Corners, piece: Corners) -> Iterator[tuple[int, list[Corners]]]:
    """The pieces that corners belong to, each with its rings (n, 2)."""
    y, x, right, _ = corners.T
    order = np.lexsort((right, x, y, piece))
    (y, x, _, below), piece = corners[order].T, piece[order]
    points = np.stack([x, y], axis=1)
    for number, members in _by_piece(_rings(piece, y, x, below), piece):
        yield number, [points[ring] for ring in members]


def _corners(padded: Mask, *, top: int) -> Corners:
    """Corners of pieces in rows with a border: y, x, and whether the pixel that has it is right, is below.

    A pixel has a corner where both pixels beside it are of other classes, or both of its own and the
    opposite one of another. One point may be the corner of up to four pieces, and of one piece twice.
    """
    across, down = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
    turns = (across[:-1] | across[1:]) & (down[:, :-1] | down[:, 1:])
    y, x = np.nonzero(turns)
    a, b, c, d = padded[y, x], padded[y, x + 1], padded[y + 1, x], padded[y + 1, x + 1]
    found = []
    quadrants = ((a, b, c, d), (b, a, d, c), (c, d, a, b), (d, c, b, a))
    for number, (own, beside, over, opposite) in enumerate(quadrants):
        convex = (beside != own) & (over != own)
        reflex = (beside == own) & (over == own) & (opposite != own)
        at = (own != VOID) & (convex | reflex)
        right, below = number % 2, number // 2
        columns = (y[at] + top, x[at], np.full(at.sum(), right), np.full(at.sum(), below))
        found.append(np.stack(columns, axis=1).astype(np.int32))
    return np.concatenate(found)


def _rings(piece: Corners, y: Corners, x: Corners, below: Corners) -> Iterator[list[int]]:
    """Corners of each ring in turn; they come sorted by piece, y, x and side, and begin to the right."""
    count = len(piece)
    level = np.arange(count) ^ 1
    order = np.lexsort((below, y, x, piece))
    upright = np.empty(count, np.int64)
    upright[order] = order[np.arange(count) ^ 1]
    # A ring that comes to a point twice is two that touch there: its corners change their partners.
    ring = _groups(np.concatenate([level, upright]), np.tile(np.arange(count), 2), count=count)
    twice = (piece[1:] == piece[:-1]) & (y[1:] == y[:-1]) & (x[1:] == x[:-1]) & (ring[1:] == ring[:-1])
    other = np.arange(count)
    at = np.flatnonzero(twice)
    other[at], other[at + 1] = at + 1, at
    return _followed(level, other[upright[other]])


def _followed(level: Numbers, upright: Numbers) -> Iterator[list[int]]:
    across, along = level.tolist(), upright.tolist()
    seen = bytearray(len(across))
    for start in range(len(across)):
        if seen[start]:
            continue
        at, ring = start, list[int]()
        while not seen[at]:
            beyond = across[at]
            seen[at] = seen[beyond] = 1
            ring += (at, beyond)
            at = along[beyond]
        yield ring


def _by_piece(rings: Iterator[list[int]], piece: Corners) -> Iterator[tuple[int, list[list[int]]]]:
    """The rings of each piece: as they begin at its first corner, the outside comes before the holes."""
    number, members = -1, list[list[int]]()
    for ring in rings:
        if (new := int(piece[ring[0]])) != number:
            if members:
                yield number, members
            number, members = new, []
        members.append(ring)
    if members:
        yield number, members


def _groups(a: Numbers, b: Numbers, *, count: int) -> Numbers:
    """The number of the connected part of each of `count` things, of which a and b are joined."""
    graph: Any = coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)
