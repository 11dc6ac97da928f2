"""A network pushed over an image in bands, every layer keeping only the rows that its readers need next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from wsiseg.execute.joining import Joint, suits
from wsiseg.execute.schedule import Schedule, needed_rows
from wsiseg.graph.fusion import formulas
from wsiseg.graph.network import inside
from wsiseg.graph.operations import ROW_AXIS, Pointwise, Rows

Feed = Callable[[Rows], Tensor]
"""Rows of the image, (1, C, rows, ...) as the network takes them."""
Made = tuple[Rows, Tensor]
"""Rows of a layer: which ones, and (1, K, rows, ...)."""

CACHE_BYTES = 2 << 20
"""What a core's cache holds, about: more rows at a time are slower, fewer need more calls."""
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

    What is still needed, `hold` rows, moves to the front when the room is used up.
    """

    def __init__(self, shape: tuple[int, ...], *, hold: int) -> None:
        self._shape = shape
        self._hold = hold
        self._data: Tensor | None = None
        self._have: Rows = (0, -1)

    def reserve(self, like: Tensor) -> None:
        """Take the memory, of the kind of `like`."""
        if self._data is None:
            self._data = empty(self._shape, like)

    def room(self, wanted: Rows) -> list[Tensor]:
        """Where the next rows are to be written, in one piece."""
        assert self._data is not None
        first, count = wanted[0], wanted[1] - wanted[0]
        if first != self._have[1] or first + count - self._have[0] > self._shape[ROW_AXIS]:
            front = self._data.narrow(ROW_AXIS, 0, self._hold)
            if first == self._have[1]:
                front.copy_(self.rows((first - self._hold, first))[0].clone())
            else:
                front.zero_()  # from before the work began
            self._have = (first - self._hold, first)
        self._have = self._have[0], first + count
        return self.rows(wanted)

    def rows(self, wanted: Rows) -> list[Tensor]:
        """Some rows, in one piece."""
        assert self._data is not None
        return [_cut(self._data, (self._have[0], self._have[0] + self._shape[ROW_AXIS]), wanted)]


class WaitingRows:
    """Rows that wait for another input of an element-wise operation, in a ring.

    Nothing moves; a stretch of rows that runs over the end of the ring comes in two pieces.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._data: Tensor | None = None
        self._stop = -1

    def reserve(self, like: Tensor) -> None:
        """Take the memory, of the kind of `like`."""
        if self._data is None:
            self._data = empty(self._shape, like)

    def room(self, wanted: Rows) -> list[Tensor]:
        """Where the next rows are to be written, in one or two pieces."""
        assert self._data is not None
        if wanted[0] != self._stop:
            self._data.zero_()  # from before the work began
        self._stop = wanted[1]
        return self.rows(wanted)

    def rows(self, wanted: Rows) -> list[Tensor]:
        """Some rows, in one or two pieces."""
        assert self._data is not None
        size = self._shape[ROW_AXIS]
        start, count = wanted[0] % size, wanted[1] - wanted[0]
        head = self._data.narrow(ROW_AXIS, start, min(count, size - start))
        return (
            [head] if start + count <= size else [head, self._data.narrow(ROW_AXIS, 0, start + count - size)]
        )


class LineStream:
    """Runs a schedule; `band` image rows at a time, a multiple of the output stride (ValueError)."""

    def __init__(self, schedule: Schedule, *, band: int) -> None:
        if band < 1 or band % schedule.graph.output_stride:
            raise ValueError(
                f"bands of {band} rows are no multiple of the output stride {schedule.graph.output_stride}"
            )
        self.schedule = schedule
        self.band = band
        inner = {i: n for i, n in schedule.last_read.items() if i not in schedule.graph.outputs}
        self.done = [[i for i, last in inner.items() if last == n] for n in range(len(schedule.shapes))]

    @cached_property
    def joints(self) -> dict[int, Joint]:
        """Element-wise layers that one pass makes on a CPU, by layer: all that are made together, or none."""
        layers, made_with = self.schedule.graph.layers, self.schedule.made_with
        channels = [shape[0] for shape in self.schedule.shapes]
        found: dict[int, Joint] = {}
        for number, layer in enumerate(layers):
            if isinstance(layer.operation, Pointwise) and made_with[number] == number:
                known = formulas(layers, channels, made_with, number)
                found |= {i: Joint(one) for i, one in known.items()}
        return found

    def run(self, feed: Feed, out: Rows) -> Iterator[list[Made | None]]:
        """All rows of the outputs on which rows `out` of the first depend, band by band.

        Each item holds, for every output, the rows that one band has made (None: nothing yet), to be
        used before the next is asked for; what lies beyond `out` is not the network's.
        """
        schedule = self.schedule
        needed = needed_rows(schedule, out, band=self.band)
        image = needed[0] or (0, 1)
        first = schedule.step_of(image[0], 0, band=self.band)
        wanted = [(i, needed[i]) for i in schedule.graph.outputs]
        last = max(schedule.step_of(rows[1] - 1, i, band=self.band) for i, rows in wanted if rows)
        run = _Run(self, feed, needed)
        for number in range(first, last + 1):
            yield run.step(number)


class _Run:
    """The rows that one run keeps between its bands, and those that its present band has made."""

    def __init__(self, stream: LineStream, feed: Feed, needed: list[Rows | None]) -> None:
        self._stream = stream
        self._schedule = stream.schedule
        self._layers = stream.schedule.graph.layers
        self._feed = feed
        self._needed = needed
        self._kept = [self._storage(number) for number in range(len(needed))]
        self._fresh: dict[int, Made] = {}
        self._like = torch.empty(0)  # the kind of the image, once it is there

    def _storage(self, layer: int) -> LineBuffer | WaitingRows | None:
        schedule, hold = self._schedule, self._schedule.holds[layer]
        if hold == 0:
            return None
        channels, _, *sides = schedule.shapes[layer]
        shape = (1, channels, schedule.kept_rows(layer, band=self._stream.band), *sides)
        return WaitingRows(shape) if schedule.waits[layer] else LineBuffer(shape, hold=hold)

    def step(self, number: int) -> list[Made | None]:
        """Take in a band; what it has made of the outputs."""
        self._fresh = {}
        made: dict[int, Rows] = {}
        for layer, wanted in enumerate(self._needed):
            rows = self._schedule.step(number, layer, band=self._stream.band)
            # All rows of a step or none: a layer's rows must not depend on where the work began.
            if wanted is not None and rows[0] < min(rows[1], wanted[1]) and rows[1] > wanted[0]:
                made[layer] = rows
                if self._schedule.made_with[layer] == layer:
                    self._make(layer, rows)
            for gone in self._stream.done[layer]:
                self._fresh.pop(gone, None)
        outputs = self._schedule.graph.outputs
        return [(made[i], self._given(i, made[i])) if i in made else None for i in outputs]

    def _make(self, layer: int, rows: Rows) -> None:
        """Make rows of a layer and put them where its readers will find them."""
        operation, kept = self._layers[layer].operation, self._kept[layer]
        if operation is None:
            made = self._feed(rows)
            self._like = made[..., :0]
            for other in self._kept:  # all at once: what comes and goes later leaves no gaps between them
                if other is not None:
                    other.reserve(made)
        elif isinstance(operation, Pointwise):
            self._make_pointwise(layer, rows)
            return
        else:
            inputs = self._layers[layer].inputs
            height = self._schedule.shapes[inputs[0]][1]
            there = inside(operation.needs(rows), height)
            made = operation.make(
                [self._given(i, there) for i in inputs], given=there, out=rows, height=height
            )
        if kept is None:
            self._fresh[layer] = rows, made
        else:
            done = 0
            for place in kept.room(rows):
                place.copy_(made.narrow(ROW_AXIS, done, place.shape[ROW_AXIS]))
                done += place.shape[ROW_AXIS]

    def _given(self, layer: int, wanted: Rows) -> Tensor:
        """Rows of a layer that are there."""
        kept = self._kept[layer]
        if kept is None:  # then they are read in the step that makes them
            have, rows = self._fresh[layer]
            return _cut(rows, have, wanted)
        pieces = kept.rows(wanted)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=ROW_AXIS)

    def _make_pointwise(self, layer: int, rows: Rows) -> None:
        """Element-wise operations in a chain: in one pass, or by rows that the cache holds."""
        kept = self._kept[layer]
        channels, _, *sides = self._schedule.shapes[layer]
        if kept is None:
            shape = (1, channels, rows[1] - rows[0], *sides)
            places = [empty(shape, self._like)]
            self._fresh[layer] = rows, places[0]
        else:
            places = kept.room(rows)
        joint = self._stream.joints.get(layer) if all(suits(place) for place in places) else None
        count = rows[1] - rows[0]
        in_between = joint is None or any(self._schedule.made_with[i] != i for i in joint.sources)
        if in_between and not self._like.is_cuda:
            count = max(1, CACHE_BYTES // (self._schedule.row_elements(layer) * self._like.element_size()))
        first = rows[0]
        for place in places:
            stop = first + place.shape[ROW_AXIS]
            for start in range(first, stop, count):
                part = start, min(start + count, stop)
                into = place.narrow(ROW_AXIS, start - first, part[1] - part[0])
                if joint is None:
                    self._compute(layer, part, {}, into=into)
                else:
                    self._join(joint, part, into=into)
            first = stop

    def _join(self, joint: Joint, rows: Rows, *, into: Tensor) -> None:
        """Rows of a chain by its formula, in stretches over which each source lies in one piece."""
        inner: dict[int, Tensor] = {}
        cuts = {*rows}
        for source in joint.sources:
            kept = self._kept[source]
            if self._schedule.made_with[source] != source:
                channels, _, *sides = self._schedule.shapes[source]
                inner[source] = empty((1, channels, rows[1] - rows[0], *sides), self._like)
                self._join(self._stream.joints[source], rows, into=inner[source])
            elif kept is not None:
                cuts.add(rows[0] + kept.rows(rows)[0].shape[ROW_AXIS])
        edges = sorted(cuts)
        for part in itertools.pairwise(edges):
            given = [
                _cut(inner[source], rows, part) if source in inner else self._given(source, part)
                for source in joint.sources
            ]
            joint(given, out=into.narrow(ROW_AXIS, part[0] - rows[0], part[1] - part[0]))

    def _compute(
        self, layer: int, rows: Rows, made: dict[int, Tensor], *, into: Tensor | None = None
    ) -> Tensor:
        """Rows of an element-wise layer, with all that is `made` together with it."""
        operation = self._layers[layer].operation
        assert isinstance(operation, Pointwise)
        made_with = self._schedule.made_with
        inputs = []
        for i in self._layers[layer].inputs:
            if made_with[i] == i:
                inputs.append(self._given(i, rows))
                continue
            if i not in made:
                made[i] = self._compute(i, rows, made)
            inputs.append(made[i])
        if into is None:
            return operation.function(*inputs)
        if operation.into is not None:
            operation.into(*inputs, out=into)
            return into
        return into.copy_(operation.function(*inputs))
