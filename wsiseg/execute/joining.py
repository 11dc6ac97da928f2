"""Chains of element-wise layers in one pass: `graph.fusion`'s formulas, carried out by `execute.kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsiseg.execute import kernels
from wsiseg.execute.kernels import by_pixel
from wsiseg.graph.fusion import Formula, Term

SOURCES = 8
"""Of a formula, at most, or a multiple of it: an ESP unit has six."""


class Joint:
    """A formula, ready to be computed for some rows of its `sources` (layers) at a time."""

    def __init__(self, formula: Formula) -> None:
        self.sources = formula.sources
        whole = _whole(formula)
        self._whole = -1 if whole is None else self.sources.index(whole)
        self._steps = np.array(_steps(formula, self.sources, whole), np.int64).reshape(-1, 5)
        values = [v for stage in formula.stages for v in (stage.scale, stage.shift, stage.slopes)]
        self._stages = np.stack([kernels.repeated(v.numpy(), channels=formula.channels) for v in values])

    def __call__(self, inputs: Sequence[Tensor], *, out: Tensor) -> None:
        """Fill `out` (1, C, rows, ...) from rows of the sources (1, C_i, rows, ...), float32 on the CPU."""
        made, values = by_pixel(out), [np.ascontiguousarray(by_pixel(rows)) for rows in inputs]
        # A tuple of another length would be another function to compile.
        values += [values[0]] * (-len(values) % SOURCES)

        def work(part: slice) -> None:
            own = tuple(one[part] for one in values)
            kernels.join(made[part], own, self._whole, self._steps, self._stages)

        kernels.in_parts(work, len(made))


def _whole(formula: Formula) -> int | None:
    """The layer that is added last, channel by channel, to all that is put together: a residual."""
    places = np.cumsum([0, *(part.count for part in formula.parts)])
    last = formula.parts[0].terms[-1][0]
    ends = [part.terms[-1] for part in formula.parts]
    return last if ends == [(last, int(first)) for first in places[:-1]] else None


def _steps(formula: Formula, sources: list[int], whole: int | None) -> list[tuple[int, ...]]:
    """What `kernels.join` does before its last pass."""
    steps: list[tuple[int, ...]] = []
    last: list[tuple[int, ...]] = []  # what is added last is added for as many channels as possible at once
    done: dict[tuple[int, tuple[Term, ...]], int] = {}  # sums that are there, by the channel they begin at
    to = 0
    for part in formula.parts:
        *terms, (layer, channel) = part.terms
        if whole is None and terms:
            before = last[-1] if last else (0, 0, -1, 0, 0)
            if before[0] + before[1] == to and before[2:4] == (sources.index(layer), channel - before[1]):
                last[-1] = (before[0], before[1] + part.count, *before[2:])
            else:
                last.append((to, part.count, sources.index(layer), channel, to))
        elif whole is None:
            terms = [(layer, channel)]
        known = max((n for n in range(len(terms)) if (part.count, (*terms[:n],)) in done), default=0)
        base = done.get((part.count, (*terms[:known],)), -1)
        for layer, channel in terms[known:]:
            steps.append((to, part.count, sources.index(layer), channel, base))
            base = to
        done.setdefault((part.count, (*terms,)), to)
        to += part.count
    return steps + last


def suits(rows: Tensor) -> bool:
    """True where rows like these (1, C, rows, ...) can be made in one pass."""
    one_by_one = rows.shape[0] == 1 and rows.movedim(1, -1).is_contiguous()
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and one_by_one
