"""A network's own graph as layers that see fixed neighbourhoods, and what follows from it.

The network is traced by `torch.fx`; what it computes is not defined a second time. (Receptive
fields: Araujo, Norris, Sim: Computing receptive fields of convolutional neural networks, Distill
2019, gives the recursion for chains; here every phase of the output stride is followed, because
up-sampling makes them differ.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from torch import nn

from wsiseg.errors import ModelError
from wsiseg.graph.operations import Pointwise, Resize, Rows
from wsiseg.graph.tracing import Layer, trace
from wsiseg.models.layers import LINEAR


@dataclass(frozen=True)
class Reach:
    """Pixels of the input that an output pixel depends on beside itself, on one axis."""

    before: int
    after: int

    @property
    def width(self) -> int:
        """Width of the receptive field, the pixel itself included."""
        return self.before + 1 + self.after


class NetworkGraph:
    """The layers of a fully convolutional network, in an order in which they can be computed.

    `enlarge` adds an up-sampling of the first output by that factor (pixel centres aligned, as
    `align_corners=False`). Raises ModelError for an operation that sees more than a fixed
    neighbourhood, with its layer's name.
    """

    def __init__(self, network: nn.Module, *, enlarge: int = 1, ndim: int = 2) -> None:
        self.layers, self.outputs = trace(network)
        if not self.outputs:
            raise ModelError("the network puts out no tensor")
        if enlarge > 1:
            self._append_resize(enlarge, ndim)
        self.scales = tuple(self._scales(axis=0))

    def _append_resize(self, factor: int, ndim: int) -> None:
        resize = partial(
            nn.functional.interpolate, scale_factor=factor, mode=LINEAR[ndim], align_corners=False
        )
        layer = Layer("enlarge", Resize(resize, factor, linear=True), (self.outputs[0],))
        self.outputs = (len(self.layers), *self.outputs[1:])
        self.layers = (*self.layers, layer)

    def _scales(self, *, axis: int) -> list[Fraction]:
        """Pixels of the image per pixel of every layer."""
        scales: list[Fraction] = []
        for layer in self.layers:
            found = {scales[i] for i in layer.inputs}
            if len(found) > 1:
                sizes = " and ".join(str(s) for s in sorted(found))
                raise ModelError(f"layer {layer.name!r} would join features of scales {sizes}")
            scale = found.pop() if found else Fraction(1)
            scales.append(scale * layer.operation.scale(axis) if layer.operation else scale)
        return scales

    @property
    def output_stride(self) -> int:
        """Pixels of the image after which the network's grid of features repeats."""
        return math.lcm(*(s.numerator for s in self.scales))

    @property
    def output_scale(self) -> int:
        """Pixels of the image per pixel of the (first) output."""
        scale = self.scales[self.outputs[0]]
        if scale.denominator != 1:
            raise ModelError(f"the network enlarges its input {1 / scale} times; at most 1 is supported")
        return int(scale)

    def shapes(self, shape: tuple[int, ...], *, channels: int) -> list[tuple[int, ...]]:
        """Shape (C, *axes) of every layer for an image of `shape`.

        Raises ModelError where the network cannot take an image of that size.
        """
        found: list[tuple[int, ...]] = []
        for layer in self.layers:
            if layer.operation is None:
                found.append((channels, *shape))
                continue
            counts, axes = [found[i][0] for i in layer.inputs], {found[i][1:] for i in layer.inputs}
            if len(axes) > 1:
                sizes = " and ".join(str(a) for a in sorted(axes))
                raise ModelError(
                    f"layer {layer.name!r} would join features of {sizes} for an image of {shape}"
                )
            constant = layer.operation.constant_axes if isinstance(layer.operation, Pointwise) else None
            if constant not in (None, len(shape)):
                raise ModelError(f"layer {layer.name!r} joins a constant of {constant} axes to {len(shape)}")
            size = layer.operation.size
            made = tuple(size(n, axis) for axis, n in enumerate(axes.pop()))
            if min(made) < 1:
                raise ModelError(f"layer {layer.name!r} leaves nothing of an image of {shape} pixels")
            found.append((layer.operation.channels(counts), *made))
        return found

    def needed(
        self,
        out: Rows,
        *,
        axis: int = 0,
        clip: list[int] | None = None,
        widen: Callable[[int, Rows], Rows] | None = None,
    ) -> list[Rows | None]:
        """The rows of every layer that rows `out` of the first output depend on; None: none.

        With `clip`, the height of every layer, rows outside the image are left out, and the other
        outputs count too, with the rows that lie beside those. `widen(layer, rows)` may ask for more.
        """
        wanted: list[Rows | None] = [None] * len(self.layers)
        for output in self.outputs if clip else self.outputs[:1]:
            ratio = self.scales[self.outputs[0]] / self.scales[output]
            beside = math.floor(out[0] * ratio), math.ceil(out[1] * ratio)
            if clip is not None:  # padding can make one output longer than the other
                whole = out[1] == clip[self.outputs[0]]
                beside = inside((beside[0], clip[output] if whole else beside[1]), clip[output])
            wanted[output] = beside
        for number in range(len(self.layers) - 1, -1, -1):
            rows, layer = wanted[number], self.layers[number]
            if rows is None:
                continue
            if widen is not None:
                rows = wanted[number] = widen(number, rows)
            if layer.operation is None:
                continue
            first, stop = layer.operation.needs(rows, axis)
            for i in layer.inputs:
                own = (first, stop) if clip is None else inside((first, stop), clip[i])
                old = wanted[i] or own
                wanted[i] = (min(old[0], own[0]), max(old[1], own[1]))
        return wanted

    def phase_reach(self, phase: int, *, axis: int) -> Reach:
        """Exact reach of the output pixels at `phase` modulo the output stride (pixels of the image)."""
        scale = self.output_scale
        index = 1000 * self.output_stride // scale + phase
        rows = self.needed((index, index + 1), axis=axis)[0]
        assert rows is not None  # a network that ignores its image has no layers
        # An output pixel coarser than the input is held to start at its first input pixel.
        return Reach(before=index * scale - rows[0], after=rows[1] - 1 - index * scale)

    def reach(self, *, axis: int) -> Reach:
        """The largest reach over all phases of the output stride."""
        phases = range(max(1, self.output_stride // self.output_scale))
        reaches = [self.phase_reach(p, axis=axis) for p in phases]
        return Reach(before=max(r.before for r in reaches), after=max(r.after for r in reaches))

    def exact_halo(self, *, axis: int) -> int:
        """The larger one-sided reach, rounded up to the output stride (pixels)."""
        reach = self.reach(axis=axis)
        stride = self.output_stride
        return -(-max(reach.before, reach.after) // stride) * stride


def inside(rows: Rows, height: int) -> Rows:
    """The part of some rows inside the image, at least one row."""
    first = min(max(rows[0], 0), height - 1)
    return first, max(min(rows[1], height), first + 1)
