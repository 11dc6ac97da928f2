"""Windows over the image, batches of one fixed shape, and their stitching."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.classes import VOID
from wsiseg.execute.base import Rows, Wanted, Work
from wsiseg.execute.decision import Confidence, Decision
from wsiseg.geometry import clip, region_shape, relative_to
from wsiseg.predict import Predictor
from wsiseg.sources.base import Array, all_true, channels_last
from wsiseg.sources.cached import CachedSource
from wsiseg.windows import Window, WindowPlan, axis_weights, check_taper, footprint


class Windowed:
    """Any network, window by window: equal to one window over everything where the halo suffices.

    `plan` lies on the model's grid; `taper` is the half-width in pixels of the cross-fade between
    neighbours, 0 to keep cores; with `scores` or `confidence` these come with the mask. Raises ValueError
    where the taper does not fit the plan.
    """

    def __init__(
        self,
        predictor: Predictor,
        plan: WindowPlan,
        *,
        taper: int = 0,
        batch: int = 1,
        scores: bool = False,
        confidence: Confidence | None = None,
    ) -> None:
        check_taper(plan, taper)
        self._predictor = predictor
        self._plan = plan
        self._taper = taper
        self._batch = batch
        self._classes = len(predictor.card.classes)
        self._decision = Decision(scores, confidence)
        self.work = Work()

    def _first_number(self, row: int) -> int:
        # A row of windows reaches `taper` rows across its borders, so the one above may matter too.
        return max(0, row - self._taper) // self._plan.core[0]

    def first_row_read(self, row: int) -> int:
        return self._plan.first_read(self._first_number(row))

    def run(self, source: CachedSource, *, first_row: int, wanted: Wanted) -> Iterator[Rows]:
        first, count = self._first_number(first_row), self._plan.grid[0]
        stitcher = Stitcher(self._plan, self._decision, taper=self._taper, num_classes=self._classes)
        shape = (self._batch, *self._plan.window_shape)
        images = channels_last(source.num_channels, shape, fill=source.outside, dtype=source.dtype)
        images = images.swapaxes(0, 1)  # (B, C, *window)
        below = self._wanted_in(first, wanted)
        for number in range(first, count):
            windows, below = below, self._wanted_in(number + 1, wanted) if number + 1 < count else []
            ahead = [*windows, *below]
            for start in range(0, len(windows), self._batch):
                for window in ahead[start : start + 2 * self._batch]:
                    source.prefetch(window.read)
                group = windows[start : start + self._batch]
                valid = self._read(source, group, into=images)
                outputs = self._predictor(images)
                for i, window in enumerate(group):
                    stitcher.add(window, outputs.scores[i], valid[i])
                    self._record(window, {name: value[i] for name, value in outputs.per_window.items()})
            yield stitcher.finish(number)

    def _record(self, window: Window, values: dict[str, Tensor]) -> None:
        """Keep what the network said of a whole window."""
        if values:
            core = [[part.start, part.stop] for part in window.core]
            said = {name: value.tolist() for name, value in values.items()}
            self.work.windows.append({"index": list(window.index), "core": core, **said})

    def _wanted_in(self, number: int, wanted: Wanted) -> list[Window]:
        """Windows of a row that contribute to a wanted pixel."""
        row = self._plan.row(number)
        return [w for w in row if wanted(footprint(self._plan, w, taper=self._taper))]

    def _read(self, source: CachedSource, group: Sequence[Window], *, into: Array) -> list[NDArray[np.bool_]]:
        """Fill a batch, up to its fixed size with background; returns the validity of each window."""
        valid = []
        for i, window in enumerate(group):
            seen = math.prod(region_shape(clip(window.read, self._plan.shape)))
            self.work.computed += seen
            self.work.repeated += seen - math.prod(region_shape(window.core))
            pixels = source.read(window.read)
            into[i] = pixels.values
            valid.append(pixels.valid)
        into[len(group) :] = source.outside
        return valid


class Stitcher:
    """Scores of windows, row of windows by row of windows, to class indices and what else is decided.

    Without taper a window's core is its own. With taper scores are added up with weights that sum to
    one by construction, and what the next row of windows adds to is carried over.
    """

    def __init__(self, plan: WindowPlan, decision: Decision, *, taper: int, num_classes: int) -> None:
        self._plan = plan
        self._decision = decision
        self._taper = taper
        self._classes = num_classes
        self._made: dict[str, NDArray[Any]] | None = None  # rows of the current row of windows
        self._void: list[tuple[tuple[slice, ...], NDArray[np.bool_]]] = []
        self._sums: Tensor | None = None  # (K, rows + taper on both sides, ...)
        self._top = 0  # row of the image at which _sums begins

    def add(self, window: Window, scores: Tensor, valid: NDArray[np.bool_]) -> None:
        """Take in the scores (K, *window) and validity (*window) of one window."""
        core = relative_to(window.core, window.read)
        if self._taper == 0:
            if self._made is None:
                self._made = self._blank(region_shape(window.core)[0])
            place: tuple[Any, ...] = (..., *self._in_rows(window))
            for name, values in self._decision.of(scores[(slice(None), *core)]).items():
                self._made[name][place] = values.cpu().numpy()
        else:
            self._add_weighted(window, scores)
        if not all_true(valid):
            self._void.append((window.core, ~valid[core]))

    def finish(self, number: int) -> Rows:
        """The rows that are complete once row `number` of the windows has been added."""
        plan, taper = self._plan, self._taper
        start = number * plan.core[0]
        stop = min(start + plan.core[0], plan.shape[0])
        if taper:
            start -= taper if number else 0
            stop -= taper if number + 1 < plan.grid[0] else 0
            made = self._finish_weighted(start, stop)
        else:
            made = self._made if self._made is not None else self._blank(stop - start)
        self._made = None
        self._apply_void(made["mask"], slice(start, stop))
        return Rows(slice(start, stop), **made)

    def _blank(self, rows: int) -> dict[str, NDArray[Any]]:
        return self._decision.blank((rows, *self._plan.shape[1:]), num_classes=self._classes)

    def _in_rows(self, window: Window) -> tuple[slice, ...]:
        first, *rest = window.core
        return (slice(0, first.stop - first.start), *rest)

    def _add_weighted(self, window: Window, scores: Tensor) -> None:
        place = footprint(self._plan, window, taper=self._taper)
        weighted = scores[(slice(None), *relative_to(place, window.read))]
        for axis in range(len(place)):
            ramp = torch.from_numpy(axis_weights(self._plan, window, axis=axis, taper=self._taper))
            shape = [1] * weighted.ndim
            shape[axis + 1] = -1
            weighted = weighted * ramp.to(scores.device).view(shape)
        if self._sums is None:
            rows = self._plan.core[0] + 2 * self._taper
            self._top = window.index[0] * self._plan.core[0] - self._taper
            size = (scores.shape[0], rows, *self._plan.shape[1:])
            self._sums = torch.zeros(size, device=scores.device)
        rows_of = slice(place[0].start - self._top, place[0].stop - self._top)
        self._sums[(slice(None), rows_of, *place[1:])] += weighted

    def _finish_weighted(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        if self._sums is None:  # nothing wanted here, nor carried over
            return self._blank(stop - start)
        ready = self._sums[:, max(0, start - self._top) : stop - self._top]
        made = {name: values.cpu().numpy() for name, values in self._decision.of(ready).items()}
        carried = self._sums[:, stop - self._top :]
        moved = torch.zeros_like(self._sums)
        moved[:, : carried.shape[1]] = carried
        # The next row of windows reaches up to where this one's complete rows end.
        self._sums, self._top = moved, stop
        return made

    def _apply_void(self, mask: NDArray[np.uint8], rows: slice) -> None:
        """Mark what could not be decoded; keep what lies in rows that are not complete yet."""
        kept = []
        for core, void in self._void:
            first = slice(max(core[0].start, rows.start), min(core[0].stop, rows.stop))
            if first.stop > first.start:
                at = (slice(first.start - rows.start, first.stop - rows.start), *core[1:])
                mask[at][void[first.start - core[0].start : first.stop - core[0].start]] = VOID
            if core[0].stop > rows.stop:
                kept.append((core, void))
        self._void = kept


def balanced_core(shape: Sequence[int], *, core: int, stride: int) -> tuple[int, ...]:
    """Cores of at most `core` pixels an axis, all of one size: no window lies half outside of the image.

    >>> balanced_core((100, 5000), core=1024, stride=8)
    (104, 1000)
    """
    counts = (-(-n // core) for n in shape)
    sizes = zip(shape, counts, strict=True)
    return tuple(min(core, -(-n // (count * stride)) * stride) for n, count in sizes)


def window_settings(plan: WindowPlan, *, taper: int, batch: int) -> dict[str, Any]:
    """What of this executor can change a float, for the store's plan."""
    return {
        "executor": "windowed",
        "core": list(plan.core),
        "halo": list(plan.halo),
        "window": list(plan.window_shape),
        "taper": taper,
        "batch": batch,
    }
