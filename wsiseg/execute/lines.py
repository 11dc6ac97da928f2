"""A network pushed over an image in bands, every layer keeping only the rows that its readers need next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wsiseg.execute.schedule import Schedule, needed_rows
from wsiseg.models.graph import inside
from wsiseg.models.operations import ROW_AXIS, Pointwise, Rows
from wsiseg.models.tracing import Layer

Feed = Callable[[Rows], Tensor]
"""Rows of the image, (1, C, rows, ...) as the network takes them."""
Made = tuple[Rows, Tensor]
"""Rows of a layer: which ones, and (1, K, rows, ...)."""

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory for a tensor of the kind of `like`, channels next to each other."""
    layout = FORMATS.get(len(shape), torch.contiguous_format)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _cut(rows: Tensor, have: Rows, wanted: Rows) -> Tensor:
    """The part of some rows that is wanted, a view."""
    start, stop = max(have[0], wanted[0]), min(have[1], wanted[1])
    return rows.narrow(ROW_AXIS, start - have[0], stop - start)


class LineBuffer:
    """The last rows of a layer, contiguous in memory, so that any stretch of them is a view.

    There is room for the `hold` rows that are kept and for some times the `count` rows of a band; what
    is still needed moves to the front when the room is used up.
    """

    def __init__(self, hold: int, *, count: int, channels: int, sides: tuple[int, ...]) -> None:
        self._hold = hold
        self._shape = (1, channels, hold + count * max(1, -(-hold // count)), *sides)
        self._data: Tensor | None = None
        self._have: Rows = (0, -1)

    def reserve(self, like: Tensor) -> None:
        """Take the memory, of the kind of `like`."""
        if self._data is None:
            self._data = empty(self._shape, like)

    def append(self, first: int, rows: Tensor) -> Tensor:
        """Take in the rows from `first` on; returns them where they lie now."""
        return self.room(first, rows.shape[ROW_AXIS]).copy_(rows)

    def room(self, first: int, count: int) -> Tensor:
        """Where the rows from `first` on are to be written."""
        assert self._data is not None
        if first != self._have[1] or first + count - self._have[0] > self._shape[ROW_AXIS]:
            front = self._data.narrow(ROW_AXIS, 0, self._hold)
            if first == self._have[1]:
                front.copy_(self.rows((first - self._hold, first))[0].clone())
            else:
                front.zero_()  # from before the work began
            self._have = (first - self._hold, first)
        self._have = self._have[0], first + count
        return self._data.narrow(ROW_AXIS, first - self._have[0], count)

    def rows(self, wanted: Rows) -> list[Tensor]:
        """Some rows, in one piece."""
        assert self._data is not None
        return [_cut(self._data, (self._have[0], self._have[0] + self._shape[ROW_AXIS]), wanted)]


class WaitingRows:
    """Rows that wait for another input of an element-wise operation: kept as they were made."""

    def __init__(self, hold: int, *, count: int, channels: int, sides: tuple[int, ...]) -> None:
        self._hold = hold
        self._shapes = [(1, channels, min(count, hold - i), *sides) for i in range(0, hold, count)]
        self._spare: list[Tensor] = []
        self._pieces: deque[Made] = deque()

    def reserve(self, like: Tensor) -> None:
        """Take the memory, of the kind of `like`."""
        if not self._spare and not self._pieces:
            self._spare = [empty(shape, like) for shape in self._shapes]

    def append(self, first: int, rows: Tensor) -> Tensor:
        """Take in the rows from `first` on; returns them."""
        if not self._pieces or first != self._pieces[-1][0][1]:
            self._begin(first)
        while self._pieces and self._pieces[0][0][1] <= first - self._hold:
            self._pieces.popleft()
        self._pieces.append(((first, first + rows.shape[ROW_AXIS]), rows))
        return rows

    def _begin(self, first: int) -> None:
        """Zeros stand for the rows from before the work began."""
        self._pieces.clear()
        start = first - self._hold
        for piece in self._spare:
            stop = start + piece.shape[ROW_AXIS]
            self._pieces.append(((start, stop), piece.zero_()))
            start = stop
        self._spare = []

    def rows(self, wanted: Rows) -> list[Tensor]:
        """Some rows, in the pieces in which they were made."""
        pieces = self._pieces
        return [_cut(p, have, wanted) for have, p in pieces if have[0] < wanted[1] and have[1] > wanted[0]]


class LineStream:
    """Runs a schedule; `band` image rows at a time, a multiple of the output stride (ValueError)."""

    def __init__(self, schedule: Schedule, *, band: int) -> None:
        if band < 1 or band % schedule.graph.output_stride:
            raise ValueError(
                f"bands of {band} rows are no multiple of the output stride {schedule.graph.output_stride}"
            )
        self.schedule = schedule
        self.band = band
        readers: dict[int, int] = {}  # the last reader of each layer
        for number, layer in enumerate(schedule.graph.layers):
            readers |= dict.fromkeys(layer.inputs, number)
        for output in schedule.graph.outputs:
            readers.pop(output, None)
        self._done = [[i for i, last in readers.items() if last == n] for n in range(len(schedule.shapes))]

    def run(self, feed: Feed, out: Rows) -> Iterator[list[Made | None]]:
        """All rows of the outputs on which rows `out` of the first depend, band by band.

        Each item holds, for every output, the rows that one band has made (None: nothing yet), to be
        used before the next is asked for; what lies beyond `out` is not the network's.
        """
        schedule = self.schedule
        needed = needed_rows(schedule, out, band=self.band)
        kept = [self._storage(number) for number in range(len(schedule.shapes))]
        image = needed[0] or (0, 1)
        first = schedule.step_of(image[0], 0, band=self.band)
        wanted = [(i, needed[i]) for i in schedule.graph.outputs]
        last = max(schedule.step_of(rows[1] - 1, i, band=self.band) for i, rows in wanted if rows)
        for step in range(first, last + 1):
            yield self._step(step, feed, needed, kept)

    def _storage(self, layer: int) -> LineBuffer | WaitingRows | None:
        schedule, hold = self.schedule, self.schedule.holds[layer]
        if hold == 0:
            return None
        channels, _, *sides = schedule.shapes[layer]
        count = schedule.band_rows(layer, band=self.band)
        kind = WaitingRows if schedule.waits[layer] else LineBuffer
        return kind(hold, count=count, channels=channels, sides=tuple(sides))

    def _step(
        self, step: int, feed: Feed, needed: list[Rows | None], kept: list[LineBuffer | WaitingRows | None]
    ) -> list[Made | None]:
        schedule = self.schedule
        fresh: dict[int, Made] = {}

        def given(number: int, wanted: Rows) -> list[Tensor]:
            buffer = kept[number]
            if buffer is not None:
                return buffer.rows(wanted)
            have, rows = fresh[number]  # a layer without buffer is read in the step that makes it
            return [_cut(rows, have, wanted)]

        for number, layer in enumerate(schedule.graph.layers):
            rows, wanted, buffer = schedule.step(step, number, band=self.band), needed[number], kept[number]
            # All rows of a step or none: a layer's rows must not depend on where the work began.
            if wanted is not None and rows[0] < min(rows[1], wanted[1]) and rows[1] > wanted[0]:
                if layer.operation is None:
                    made = feed(rows)
                    for other in kept:  # all at once, so that what comes and goes leaves no gaps between
                        if other is not None:
                            other.reserve(made)
                    made = made if buffer is None else buffer.append(rows[0], made)
                else:
                    made = self._make(layer, rows, given, buffer, schedule.shapes[number][0])
                fresh[number] = rows, made
                del made
            for gone in self._done[number]:
                fresh.pop(gone, None)
        return [fresh.get(i) for i in schedule.graph.outputs]

    def _make(
        self,
        layer: Layer,
        rows: Rows,
        given: Callable[[int, Rows], list[Tensor]],
        buffer: LineBuffer | WaitingRows | None,
        channels: int,
    ) -> Tensor:
        """Rows of a layer, put where its readers will find them."""
        operation = layer.operation
        assert operation is not None
        height = self.schedule.shapes[layer.inputs[0]][1]
        there = inside(operation.needs(rows), height)
        pieces = [given(i, there) for i in layer.inputs]
        if isinstance(operation, Pointwise) and operation.into is not None:
            like, count = pieces[0][0], rows[1] - rows[0]
            if isinstance(buffer, LineBuffer):
                place = buffer.room(rows[0], count)
            else:
                place = empty((1, channels, count, *like.shape[ROW_AXIS + 1 :]), like)
            _fill(place, operation.into, pieces)
            return buffer.append(rows[0], place) if isinstance(buffer, WaitingRows) else place
        inputs = [p[0] if len(p) == 1 else torch.cat(p, dim=ROW_AXIS) for p in pieces]
        made = operation.make(inputs, given=there, out=rows, height=height)
        if isinstance(buffer, WaitingRows) and any(_share_memory(made, i) for i in inputs):
            made = made.clone()  # of a buffer that moves on
        return made if buffer is None else buffer.append(rows[0], made)


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _fill(place: Tensor, into: Callable[..., object], pieces: list[list[Tensor]]) -> None:
    """Let an element-wise operation write, stretch by stretch of rows that lie in one piece everywhere."""
    done, rest = 0, [list(p) for p in pieces]
    while done < place.shape[ROW_AXIS]:
        count = min(p[0].shape[ROW_AXIS] for p in rest)
        into(*(p[0].narrow(ROW_AXIS, 0, count) for p in rest), out=place.narrow(ROW_AXIS, done, count))
        for p in rest:
            left = p[0].shape[ROW_AXIS] - count
            p[:1] = [p[0].narrow(ROW_AXIS, count, left)] if left else []
        done += count
