"""The whole image in one exact pass: bands of rows through the line buffers of `execute.lines`.

The mask equals `network(image)` of the whole image, padded at the bottom and the right with background
to the output stride: no overlap, no seam, no pixel computed twice, memory free of the height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.classes import VOID
from wsiseg.execute.base import Rows, Wanted, Work
from wsiseg.execute.decision import Confidence, Decision
from wsiseg.execute.lines import LineStream, Made
from wsiseg.execute.schedule import Schedule, make_schedule, needed_rows
from wsiseg.geometry import Region
from wsiseg.graph.network import NetworkGraph
from wsiseg.predict import NetworkPredictor
from wsiseg.sources.cached import CachedSource

Fetched = Callable[[], NDArray[Any]]
"""Waits for what is copied from a device."""


class Streaming:
    """A fully convolutional network over an image of `shape`, `band` rows at a time.

    A band as high as the padded image means one forward pass. With `scores` or `confidence` these come with
    the mask. Raises ModelError where the network cannot be streamed, ValueError where the band is no
    multiple of its output stride.
    """

    def __init__(
        self,
        predictor: NetworkPredictor,
        shape: tuple[int, ...],
        *,
        band: int,
        scores: bool = False,
        confidence: Confidence | None = None,
    ) -> None:
        card = predictor.card
        graph = NetworkGraph(predictor.network, enlarge=card.windows.output_scale, ndim=len(shape))
        self._padded = padded(shape, stride=graph.output_stride)
        self._stream = LineStream(make_schedule(graph, self._padded, channels=card.channels), band=band)
        self._output = graph.outputs[0]
        self._in_one_piece = band >= self._padded[0]
        self._predictor = predictor
        self._shape = shape
        self._classes = len(card.classes)
        self._decision = Decision(scores, confidence)
        self._device = Device(predictor.device)
        self._begin = cache(self._first_band)  # asked for every piece, more than once
        self._unread = 0  # the first row that may still be read
        self.work = Work()

    @property
    def _schedule(self) -> Schedule:
        return self._stream.schedule

    def _piece(self, step: int) -> slice:
        """Rows of the mask that a band completes."""
        if self._in_one_piece:
            return slice(0, self._shape[0])
        start, stop = self._schedule.step(step, self._output, band=self._stream.band)
        return slice(min(start, self._shape[0]), min(stop, self._shape[0]))

    def _step_of(self, row: int) -> int:
        if self._in_one_piece:
            return 0
        return self._schedule.step_of(row, self._output, band=self._stream.band)

    def _first_band(self, row: int) -> int:
        """The band with which work must begin for a row of the mask to be right."""
        return self._image_rows(slice(row, row + 1))[0] // self._stream.band

    def _image_rows(self, rows: slice) -> tuple[int, int]:
        """Rows of the image on which some rows of the mask depend."""
        needed = needed_rows(self._schedule, (rows.start, rows.stop), band=self._stream.band)[0]
        assert needed is not None  # a mask depends on its image
        return needed

    def first_row_read(self, row: int) -> int:
        return self._unread

    def run(self, source: CachedSource, *, first_row: int, wanted: Wanted) -> Iterator[Rows]:
        step = self._step_of(first_row)
        self.work.repeated += self._rows_again(first_row, wanted) * int(np.prod(self._shape[1:]))
        for stretch in self._stretches(step, wanted):
            self._unread = self._begin(stretch.start) * self._stream.band
            while self._piece(step).stop <= stretch.start:
                yield self._blank(self._piece(step))
                step += 1
            yield from self._compute(source, stretch)
            step = self._step_of(stretch.stop - 1) + 1
        self._unread = self._padded[0]
        while step <= self._step_of(self._shape[0] - 1):
            yield self._blank(self._piece(step))
            step += 1

    def _rows_again(self, first_row: int, wanted: Wanted) -> int:
        """Rows that a run interrupted at `first_row` had fed and that are fed again."""
        stretch = next(self._stretches(self._step_of(first_row), wanted), None)
        if first_row == 0 or stretch is None:
            return 0
        last = self._step_of(first_row - 1)
        for before in self._stretches(0, wanted):
            if before.start < first_row and self._piece(last).start < before.stop:
                began = max(self._begin(before.start), self._begin(stretch.start)) * self._stream.band
                return max(0, min((last + 1) * self._stream.band, self._shape[0]) - began)
        return 0

    def _blank(self, rows: slice) -> Rows:
        shape = (rows.stop - rows.start, *self._shape[1:])
        return Rows(rows, **self._decision.blank(shape, num_classes=self._classes))

    def _stretches(self, first: int, wanted: Wanted) -> Iterator[slice]:
        """Rows computed in one go: between two of them lies more than a receptive field of nothing."""
        current: slice | None = None
        rest = tuple(slice(0, n) for n in self._shape[1:])
        for step in range(first, self._step_of(self._shape[0] - 1) + 1):
            rows = self._piece(step)
            if rows.stop <= rows.start or not wanted((rows, *rest)):
                continue
            if current is None:
                current = rows
            elif self._begin(rows.start) <= self._step_of(current.stop - 1):
                current = slice(current.start, rows.stop)
            else:
                yield current
                current = rows
        if current is not None:
            yield current

    @torch.inference_mode()
    def _compute(self, source: CachedSource, stretch: slice) -> Iterator[Rows]:
        """Rows of the mask of a stretch, band by band."""
        void: list[tuple[slice, NDArray[np.bool_]]] = []
        last = self._image_rows(stretch)[1]

        def feed(rows: tuple[int, int]) -> Tensor:
            source.prefetch(self._region(rows[1], min(rows[1] + self._stream.band, max(last, rows[1]))))
            pixels = source.read(self._region(*rows))
            self._unread = rows[1]
            inside = min(rows[1], self._shape[0]) - rows[0]
            self.work.computed += max(0, inside) * int(np.prod(self._shape[1:]))
            if not pixels.all_valid:
                void.append((slice(*rows), ~pixels.valid))
            return self._predictor.inputs(self._device.load(pixels.values))

        waiting: tuple[slice, dict[str, Fetched]] | None = None
        for outputs in self._scores(feed, stretch):
            if outputs is None:
                continue
            (start, stop), scores = outputs
            if not stretch.start <= start < stretch.stop:  # needed by another output only
                continue
            rows = slice(start, min(stop, self._shape[0]))
            inside: Any = (..., slice(0, rows.stop - start), *(slice(0, n) for n in self._shape[1:]))
            made = {name: values[inside] for name, values in self._decision.of(scores[0]).items()}
            # While the device works on this band, the rows of the one before are handed on.
            fetched = {name: self._device.fetch(values) for name, values in made.items()}
            ready, waiting = waiting, (rows, fetched)
            if not self._device.overlaps:
                ready, waiting = waiting, None
            if ready is not None:
                yield self._finish(*ready, void)
        if waiting is not None:
            yield self._finish(*waiting, void)

    def _scores(self, feed: Callable[[tuple[int, int]], Tensor], stretch: slice) -> Iterator[Made | None]:
        if not self._in_one_piece:
            for outputs in self._stream.run(feed, (stretch.start, stretch.stop)):
                yield outputs[0]
        else:
            whole = (0, self._padded[0])
            yield whole, self._predictor.outputs(feed(whole)).scores

    def _region(self, start: int, stop: int) -> Region:
        return (slice(start, stop), *(slice(0, n) for n in self._padded[1:]))

    def _finish(
        self,
        rows: slice,
        fetched: dict[str, Fetched],
        void: list[tuple[slice, NDArray[np.bool_]]],
    ) -> Rows:
        """A piece of the mask with VOID where the image could not be decoded."""
        made = {name: fetch() for name, fetch in fetched.items()}
        mask = made["mask"]
        for have, invalid in void:
            part = slice(max(rows.start, have.start), min(rows.stop, have.stop))
            if part.start < part.stop:
                inside = tuple(slice(0, n) for n in mask.shape[1:])
                lines = invalid[(slice(part.start - have.start, part.stop - have.start), *inside)]
                mask[part.start - rows.start : part.stop - rows.start][lines] = VOID
        void[:] = [entry for entry in void if entry[0].stop > rows.stop]
        if "scores" in made:  # a view of a whole band, perhaps
            made["scores"] = made["scores"].copy()
        return Rows(rows, **made)


class Device:
    """Bands to the device and masks from it; on a GPU both go on while it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.overlaps = device.type == "cuda"
        self._uploads = torch.cuda.Stream(device) if self.overlaps else None

    def load(self, values: NDArray[np.uint8]) -> Tensor:
        """Pixels (C, ...) as (1, C, ...) on the device."""
        pixels = torch.from_numpy(values)[None]
        if self._uploads is None:
            return pixels
        with torch.cuda.stream(self._uploads):
            there = pixels.pin_memory().to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._uploads)
        there.record_stream(current)
        return there

    def fetch(self, mask: Tensor) -> Fetched:
        """Begins to copy a mask, or what comes with it; what comes back waits for it."""
        if self._uploads is None:
            return mask.numpy
        host = torch.empty(mask.shape, dtype=mask.dtype, pin_memory=True)
        host.copy_(mask, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self._device))

        def wait() -> NDArray[Any]:
            copied.synchronize()
            return host.numpy()

        return wait


def padded(shape: tuple[int, ...], *, stride: int) -> tuple[int, ...]:
    """The smallest sizes not below `shape` that the output stride divides.

    >>> padded((100, 64), stride=8)
    (104, 64)
    """
    return tuple(-(-n // stride) * stride for n in shape)


def streaming_settings(*, band: int) -> dict[str, Any]:
    """What of this executor can change a float, for the store's plan."""
    return {"executor": "streaming", "band": band}
