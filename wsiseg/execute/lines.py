"""A network pushed over an image in bands, every layer keeping only the rows that its readers need next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wsiseg.execute.schedule import Schedule, needed_rows
from wsiseg.models.graph import inside
from wsiseg.models.operations import ROW_AXIS, Rows

Feed = Callable[[Rows], Tensor]
"""Rows of the image, (1, C, rows, ...) as the network takes them."""
Made = tuple[Rows, Tensor]
"""Rows of an output: which ones, and (1, K, rows, ...)."""

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class LineBuffer:
    """The last rows of a layer, contiguous in memory, so that any stretch of them is a view.

    Rows lie in a tensor with room for some bands; what is still needed moves to its front when it
    is full.
    """

    def __init__(self, hold: int) -> None:
        self._hold = hold
        self._data: Tensor | None = None
        self._first = 0  # the row of the image that lies at the front
        self._stop = -1  # one beyond the last row that is there

    def append(self, first: int, rows: Tensor) -> Tensor:
        """Take in the rows from `first` on; returns them where they lie now."""
        count = rows.shape[ROW_AXIS]
        if self._data is None or first != self._stop or first + count - self._first > self._capacity:
            self._make_room(first, rows)
        assert self._data is not None
        place = self._data.narrow(ROW_AXIS, first - self._first, count)
        place.copy_(rows)
        self._stop = first + count
        return place

    @property
    def _capacity(self) -> int:
        return 0 if self._data is None else int(self._data.shape[ROW_AXIS])

    def _make_room(self, first: int, rows: Tensor) -> None:
        """Move what is kept to the front; where the rows before `first` were never made, zeros stand in."""
        hold, count = self._hold, rows.shape[ROW_AXIS]
        capacity = hold + count * max(1, -(-hold // count))
        kept = None
        if self._data is not None and first == self._stop:
            kept = self._data.narrow(ROW_AXIS, first - hold - self._first, hold).clone()
        if self._data is None or self._capacity < capacity:
            self._data = empty_rows(rows, capacity)
        front = self._data.narrow(ROW_AXIS, 0, hold)
        if kept is None:
            front.zero_()
        else:
            front.copy_(kept)
        self._first = first - hold

    def rows(self, wanted: Rows) -> Tensor:
        """Some rows, a view."""
        assert self._data is not None
        return self._data.narrow(ROW_AXIS, wanted[0] - self._first, wanted[1] - wanted[0])


def empty_rows(like: Tensor, count: int) -> Tensor:
    """Room for `count` rows of the kind of `like`, channels next to each other in memory."""
    shape = list(like.shape)
    shape[ROW_AXIS] = count
    layout = FORMATS.get(like.ndim, torch.contiguous_format)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


class LineStream:
    """Runs a schedule; keeps the rows between bands."""

    def __init__(self, schedule: Schedule, *, band: int) -> None:
        if band < 1 or band % schedule.graph.output_stride:
            raise ValueError(
                f"bands of {band} rows are no multiple of the output stride {schedule.graph.output_stride}"
            )
        self.schedule = schedule
        self.band = band
        layers = schedule.graph.layers
        readers: dict[int, int] = {}  # the last reader of each layer
        for number, layer in enumerate(layers):
            readers |= dict.fromkeys(layer.inputs, number)
        self._done = [[i for i, last in readers.items() if last == n] for n in range(len(layers))]

    def run(self, feed: Feed, out: Rows) -> Iterator[list[Made]]:
        """All rows of the outputs on which rows `out` of the first depend, band by band.

        Each item holds, for every output, the rows that one band has made; they may reach beyond `out`,
        and what lies beyond is not the network's.
        """
        schedule, outputs = self.schedule, self.schedule.graph.outputs
        needed = needed_rows(schedule, out)
        buffers = [LineBuffer(hold) if hold else None for hold in schedule.holds]
        image = needed[0] or (0, 0)
        first = schedule.step_of(image[0], 0, band=self.band)
        last = schedule.step_of(out[1] - 1, outputs[0], band=self.band)
        for step in range(first, last + 1):
            yield self._step(step, feed, needed, buffers)

    def _step(
        self, step: int, feed: Feed, needed: list[Rows | None], buffers: list[LineBuffer | None]
    ) -> list[Made]:
        schedule = self.schedule
        fresh: dict[int, Made] = {}
        for number, layer in enumerate(schedule.graph.layers):
            rows = schedule.step(step, number, band=self.band)
            wanted, buffer = needed[number], buffers[number]
            # All rows of a step or none: a layer's rows must not depend on where the work began.
            if wanted is not None and rows[0] < min(rows[1], wanted[1]) and rows[1] > wanted[0]:
                if layer.operation is None:
                    made = feed(rows)
                else:
                    height = schedule.shapes[layer.inputs[0]][1]
                    given = inside(layer.operation.needs(rows), height)
                    inputs = [_rows(given, fresh.get(i), buffers[i]) for i in layer.inputs]
                    made = layer.operation.make(inputs, given=given, out=rows, height=height)
                    del inputs
                fresh[number] = rows, (buffer.append(rows[0], made) if buffer else made)
                del made
            for gone in self._done[number]:
                fresh.pop(gone, None)
        return [fresh[i] for i in schedule.graph.outputs if i in fresh]


def _rows(wanted: Rows, fresh: Made | None, buffer: LineBuffer | None) -> Tensor:
    """Rows of a layer, from what this band has made of it or from what was kept."""
    if buffer is not None:
        return buffer.rows(wanted)
    assert fresh is not None  # a layer without buffer is read in the step that makes it
    made, values = fresh
    return values.narrow(ROW_AXIS, wanted[0] - made[0], wanted[1] - wanted[0])
