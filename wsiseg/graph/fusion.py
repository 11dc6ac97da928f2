"""Chains of element-wise layers as formulas: channels put together, then scaled, shifted and bent.

Hierarchical fusion, concatenation, residual, norm and PReLU of an ESP unit (and what follows it) come to
`bend(scale * (sum of slices of layers) + shift)` per channel, perhaps with a second scale, shift and bend
after it, which is computed in one pass over memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wsiseg.graph.operations import Operation, Pointwise
from wsiseg.graph.tracing import Layer
from wsiseg.models.inference import FixedNorm

Term = tuple[int, int]
"""A layer, and the first of its channels."""
MOST_STAGES = 2
HANDS_ON = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""What changes nothing in evaluation."""


@dataclass(frozen=True)
class Part:
    """Channels that are made alike: the sum of as many channels of each term, in that order."""

    count: int
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Stage:
    """`x * scale + shift`, where `slope` (PReLU's) multiplies what is not above 0; all per channel."""

    scale: Tensor
    shift: Tensor
    slope: Tensor | None = None  # None: nothing is bent

    @classmethod
    def nothing(cls, channels: int) -> Stage:
        """A stage that leaves all values as they are."""
        return cls(torch.ones(channels), torch.zeros(channels))

    @property
    def slopes(self) -> Tensor:
        """`slope`, 1 where nothing is bent."""
        return torch.ones_like(self.scale) if self.slope is None else self.slope


@dataclass(frozen=True)
class Formula:
    """A sum of slices of layers, and what is done with it: one stage or more."""

    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return sum(part.count for part in self.parts)

    @property
    def sources(self) -> list[int]:
        """The layers that are read, each once."""
        return list(dict.fromkeys(layer for part in self.parts for layer, _ in part.terms))

    @property
    def is_sum(self) -> bool:
        """True while nothing but adding and putting together has happened."""
        first, *more = self.stages
        return (
            not more and first.slope is None and bool((first.scale == 1).all() and (first.shift == 0).all())
        )

    def with_last(self, stage: Stage) -> Formula:
        """The same with another last stage."""
        return replace(self, stages=(*self.stages[:-1], stage))


class _NoFormula(Exception):
    """Something else than adding, putting together, scaling, shifting and bending."""


def formulas(
    layers: Sequence[Layer], channels: Sequence[int], made_with: Sequence[int], sink: int
) -> dict[int, Formula]:
    """What layer `sink` and those made with it compute of the layers before them; empty: no such formulas.

    By layer, in the order of work: the last is that of `sink`, which may read the others. `channels` are
    those of every layer.
    """
    found: dict[int, Formula] = {}
    first: dict[int, Formula] = {}  # what has to be made before it is read

    def of(number: int) -> Formula:
        if made_with[number] != sink:
            return _layer(number, channels[number])
        if number not in found:
            operation, sources = layers[number].operation, layers[number].inputs
            inputs = [of(i) for i in sources]
            try:
                found[number] = _applied(operation, inputs)
            except _NoFormula:
                for i, source in enumerate(sources):
                    if not inputs[i].is_sum:
                        first[source], inputs[i] = inputs[i], _layer(source, channels[source])
                found[number] = _applied(operation, inputs)
        return found[number]

    try:
        last = of(sink)
    except _NoFormula:
        return {}
    return {**first, sink: last}


def _layer(number: int, channels: int) -> Formula:
    return Formula((Part(channels, ((number, 0),)),), (Stage.nothing(channels),))


def _applied(operation: Operation | None, inputs: Sequence[Formula]) -> Formula:
    """One more operation after those of its inputs. Raises _NoFormula."""
    assert isinstance(operation, Pointwise)
    if operation.joins is torch.cat:
        return _behind_one_another([inputs[i] for i in operation.joined])
    if operation.joins is torch.add:
        return _sum(*(inputs[i] for i in operation.joined))
    if len(inputs) != 1:
        raise _NoFormula
    kind = next((k for k in _MODULES if isinstance(operation.function, k)), None)
    if kind is None:
        raise _NoFormula
    return _MODULES[kind](operation.function, inputs[0])


def _normed(norm: FixedNorm, before: Formula) -> Formula:
    scale, shift = norm.scale.flatten(), norm.shift.flatten()
    last = before.stages[-1]
    if last.slope is None:
        return before.with_last(Stage(last.scale * scale, last.shift * scale + shift))
    if len(before.stages) == MOST_STAGES:
        raise _NoFormula
    return replace(before, stages=(*before.stages, Stage(scale, shift)))


def _bent(slope: Tensor, before: Formula) -> Formula:
    last = before.stages[-1]
    if last.slope is not None:
        raise _NoFormula
    return before.with_last(replace(last, slope=slope.detach().flatten().expand(before.channels)))


_MODULES: Mapping[type[nn.Module], Callable[..., Formula]] = {
    FixedNorm: _normed,
    nn.PReLU: lambda module, before: _bent(module.weight, before),
    nn.LeakyReLU: lambda module, before: _bent(torch.tensor(module.negative_slope), before),
    nn.ReLU: lambda _, before: _bent(torch.tensor(0.0), before),
    **{kind: lambda _, before: before for kind in HANDS_ON},
}


def _behind_one_another(inputs: Sequence[Formula]) -> Formula:
    count = max(len(f.stages) for f in inputs)
    stages = []
    for number in range(count):
        own = [f.stages[number] if number < len(f.stages) else Stage.nothing(f.channels) for f in inputs]
        bent = any(stage.slope is not None for stage in own)
        slope = torch.cat([stage.slopes for stage in own]) if bent else None
        stages.append(Stage(torch.cat([s.scale for s in own]), torch.cat([s.shift for s in own]), slope))
    return Formula(tuple(part for f in inputs for part in f.parts), tuple(stages))


def _sum(first: Formula, second: Formula) -> Formula:
    """Two sums added up, with parts as small as those of both."""
    if not first.is_sum or not second.is_sum or first.channels != second.channels:
        raise _NoFormula
    parts: list[Part] = []
    # A layer as it is comes last, so that a residual is added to all channels at once.
    sides = sorted((list(first.parts), list(second.parts)), key=lambda side: -len(side))
    while sides[0]:
        count = min(side[0].count for side in sides)
        # Added up from the left, as the layers do it: a + (b + c) is (b + c) + a.
        longer = sorted((side[0].terms for side in sides), key=lambda terms: -len(terms))
        parts.append(Part(count, longer[0] + longer[1]))
        for rest in sides:
            part = rest.pop(0)
            if part.count > count:
                terms = tuple((layer, channel + count) for layer, channel in part.terms)
                rest.insert(0, Part(part.count - count, terms))
    return replace(first, parts=tuple(parts))
