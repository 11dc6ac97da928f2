"""When each row of each layer is made, and how long it is kept: the integers of streaming.

Image rows arrive in bands. After A rows (a multiple of the output stride) a layer of scale S has made
clamp(A / S - D, 0, H) of its H rows: D is its delay. The counter A runs past the height of the image
until the last row has come out, so that the drain is the same formula as the flow. Everything is a
function of A alone, so that work begun in the middle makes the same rows in the same steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from wsiseg.graph.network import NetworkGraph, inside
from wsiseg.graph.operations import Pointwise, Rows

_FAR = 1 << 20  # output strides below the top: far from any border


@dataclass(frozen=True)
class Schedule:
    """The order of work for one network and one size of image.

    `delays` and `holds` count rows in each layer's own frame: by how many it lags behind the image, and
    how many of its last rows are still needed once a band has been worked through. A layer `waits`
    where these are kept for element-wise operations only, until their other inputs are there. It is
    `made_with` the last of the element-wise layers that follow it, if nothing else does, or with itself.
    """

    graph: NetworkGraph
    shapes: tuple[tuple[int, ...], ...]  # (C, *axes) per layer
    delays: tuple[int, ...]
    holds: tuple[int, ...]
    waits: tuple[bool, ...]
    made_with: tuple[int, ...]

    @property
    def heights(self) -> list[int]:
        """Rows of the whole image at every layer."""
        return [shape[1] for shape in self.shapes]

    def made(self, layer: int, fed: int) -> int:
        """Rows of a layer that exist once `fed` rows of the image are there."""
        numerator, denominator = self._ratios[layer]
        rows = fed * denominator // numerator - self.delays[layer]
        return min(max(rows, 0), self.shapes[layer][1])

    @cached_property
    def _ratios(self) -> list[tuple[int, int]]:
        return [s.as_integer_ratio() for s in self.graph.scales]

    def step(self, number: int, layer: int, *, band: int) -> Rows:
        """Rows of a layer that are made of the band with that number."""
        return self.made(layer, number * band), self.made(layer, (number + 1) * band)

    def step_of(self, row: int, layer: int, *, band: int) -> int:
        """The number of the band with which a row of a layer is made."""
        fed = (row + 1 + self.delays[layer]) * self.graph.scales[layer]
        return max(0, math.ceil(fed / band) - 1)

    def band_rows(self, layer: int, *, band: int) -> int:
        """Rows of a layer in a band, away from the borders."""
        scale = self.graph.scales[layer]
        return -(-band * scale.denominator // scale.numerator)

    def kept_rows(self, layer: int, *, band: int) -> int:
        """Rows for which a layer has room between bands: those it holds and those of some bands."""
        hold, count = self.holds[layer], self.band_rows(layer, band=band)
        if hold == 0:
            return 0
        # A ring needs no more than one band; what moves to the front should not do so for every band.
        return hold + count if self.waits[layer] else hold + count * max(1, -(-hold // count))

    @cached_property
    def last_read(self) -> dict[int, int]:
        """For every layer that is read, the layer with which that happens for the last time."""
        last: dict[int, int] = {}
        for number, layer in enumerate(self.graph.layers):
            for i in layer.inputs:
                last[i] = max(last.get(i, 0), self.made_with[number])
        return last

    def row_elements(self, layer: int) -> int:
        """Numbers in one row of a layer."""
        count, _, *rest = self.shapes[layer]
        return count * math.prod(rest)


def make_schedule(graph: NetworkGraph, shape: tuple[int, ...], *, channels: int) -> Schedule:
    """The schedule for an image of `shape`, a multiple of the output stride on every axis.

    Raises ModelError where the network cannot take an image of that size.
    """
    shapes = graph.shapes(shape, channels=channels)
    delays = _earliest(graph)
    per_row = [count * math.prod(rest) for count, _, *rest in shapes]
    _postpone(graph, delays, per_row)
    holds, waits = [0] * len(delays), [True] * len(delays)
    for reader, layer in enumerate(graph.layers):
        for source in layer.inputs:
            hold = _hold(graph, delays, source=source, reader=reader)
            assert layer.operation is not None
            if layer.operation.needs((shapes[reader][1] - 1, shapes[reader][1]))[0] >= shapes[source][1]:
                hold = max(hold, 1)
            holds[source] = max(holds[source], hold)
            waits[source] &= hold == 0 or isinstance(layer.operation, Pointwise)
    made_with = _chains(graph, delays, holds)
    return Schedule(graph, tuple(shapes), tuple(delays), tuple(holds), tuple(waits), tuple(made_with))


def _chains(graph: NetworkGraph, delays: list[int], holds: list[int]) -> list[int]:
    """For every layer the one with which it is made."""
    made_with = list(range(len(delays)))
    for number in range(len(delays) - 1, 0, -1):
        readers = [r for r, layer in enumerate(graph.layers) if number in layer.inputs]
        pointwise = [isinstance(graph.layers[i].operation, Pointwise) for i in (number, *readers)]
        ends = {made_with[r] for r in readers}
        alone = len(ends) == 1 and number not in graph.outputs and not holds[number]
        if alone and all(pointwise) and all(delays[r] == delays[number] for r in readers):
            made_with[number] = ends.pop()
    return made_with


def _earliest(graph: NetworkGraph) -> list[int]:
    """The least delay of every layer."""
    delays: list[int] = []
    for layer in graph.layers:
        behind = max((delays[i] for i in layer.inputs), default=0)
        # A row that only padding reaches could be made before anything is fed; it waits for the first band.
        delays.append(max(0, layer.operation.delay(behind)) if layer.operation else 0)
    return delays


def _hold(graph: NetworkGraph, delays: list[int], *, source: int, reader: int) -> int:
    """Rows of `source` that `reader` still needs after a band."""
    operation = graph.layers[reader].operation
    assert operation is not None  # the image reads nothing
    fed = Fraction(_FAR * graph.output_stride)
    there = int(fed / graph.scales[source]) - delays[source]
    next_row = int(fed / graph.scales[reader]) - delays[reader]
    return max(0, there - operation.needs((next_row, next_row + 1))[0])


def _postpone(graph: NetworkGraph, delays: list[int], per_row: list[int]) -> None:
    """Delay layers whose readers wait for something else anyway, where that needs no more memory.

    The dilated branches of a pyramid so come to share the rows kept for the widest of them, instead of
    each keeping its own results; a narrow projection before a long wait stays where it is.
    """
    readers: list[list[int]] = [[] for _ in graph.layers]
    for reader, layer in enumerate(graph.layers):
        for source in layer.inputs:
            readers[source].append(reader)

    def kept(*layers: int) -> int:
        return sum(
            per_row[u] * max((_hold(graph, delays, source=u, reader=r) for r in readers[u]), default=0)
            for u in layers
        )

    for number in range(len(delays) - 1, 0, -1):
        if not readers[number] or number in graph.outputs:
            continue
        touched = (number, *graph.layers[number].inputs)
        before, earliest = kept(*touched), delays[number]
        delays[number] = _latest(graph, delays, number, readers[number])
        if kept(*touched) > before:
            delays[number] = earliest


def _latest(graph: NetworkGraph, delays: list[int], number: int, readers: list[int]) -> int:
    """The largest delay of a layer that delays none of its readers."""

    def delays_nobody(delay: int) -> bool:
        for reader in readers:
            operation = graph.layers[reader].operation
            assert operation is not None
            if operation.delay(delay) > delays[reader]:
                return False
        return True

    low = delays[number]
    step = 1
    while delays_nobody(low + step):
        low, step = low + step, 2 * step
    while step:
        if delays_nobody(low + step):
            low += step
        step //= 2
    return low


def needed_rows(schedule: Schedule, out: Rows, *, band: int) -> list[Rows | None]:
    """The rows of every layer, inside the image, on which rows `out` of the first output depend.

    A layer makes the rows of a band together, so that its last ones take with them what they are made of.
    """

    def to_end_of_band(layer: int, rows: Rows) -> Rows:
        last = schedule.step_of(rows[1] - 1, layer, band=band)
        return rows[0], max(rows[1], schedule.step(last, layer, band=band)[1])

    heights = schedule.heights
    whole = inside(out, heights[schedule.graph.outputs[0]])
    return schedule.graph.needed(whole, clip=heights, widen=to_end_of_band)


def memory_bytes(schedule: Schedule, *, band: int, element_bytes: int = 4) -> int:
    """What a band takes at its peak: rows that are kept, and what is on the way between them."""
    alive = peak = kept = 0
    made: dict[int, int] = {}
    for number, hold in enumerate(schedule.holds):
        row = schedule.row_elements(number)
        kept += row * schedule.kept_rows(number, band=band)
        if hold == 0 and schedule.made_with[number] == number:
            made[number] = row * schedule.band_rows(number, band=band)
            alive += made[number]
        peak = max(peak, alive)
        alive -= sum(made.pop(i, 0) for i, last in schedule.last_read.items() if last == number)
    return (kept + peak) * element_bytes
