"""What a network's graph says about it: output stride and receptive field, derived, not measured.

The network is traced by `torch.fx`; then, for one output pixel, the interval of every feature map
that it depends on is propagated backwards to the input, one axis at a time. (Araujo, Norris, Sim:
Computing receptive fields of convolutional neural networks, Distill 2019, gives the same recursion
for chains; here every phase of the output stride is followed, because up-sampling makes them differ.)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import fx, nn

from wsiseg.errors import ModelError

Interval = tuple[int, int]  # first and last index, both included

_WINDOWED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
             nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)  # fmt: skip
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_POINTWISE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU, nn.ReLU, nn.Identity, nn.Dropout)
_JOIN = (operator.add, torch.add, torch.cat, torch.relu, operator.getitem)


@dataclass(frozen=True)
class Reach:
    """Pixels of the input that an output pixel depends on beside itself, on one axis."""

    before: int
    after: int

    @property
    def width(self) -> int:
        """Width of the receptive field, the pixel itself included."""
        return self.before + 1 + self.after


def _axis(value: Any, axis: int) -> int:
    return int(value[axis]) if isinstance(value, tuple) else int(value)


def _dependencies(module: nn.Module, axis: int) -> Callable[[Interval], Interval] | None:
    """The map from an interval of the module's output to that of its input; None: not local."""
    if isinstance(module, _POINTWISE):
        return lambda out: out
    if isinstance(module, _WINDOWED):
        k, s, p = (_axis(v, axis) for v in (module.kernel_size, module.stride, module.padding))
        reach = _axis(getattr(module, "dilation", 1), axis) * (k - 1)
        return lambda out: (out[0] * s - p, out[1] * s - p + reach)
    if isinstance(module, _TRANSPOSED):
        k, s, p, d = (
            _axis(v, axis) for v in (module.kernel_size, module.stride, module.padding, module.dilation)
        )
        return lambda out: (-((d * (k - 1) - out[0] - p) // s), (out[1] + p) // s)
    if isinstance(module, nn.Upsample) and module.mode in ("linear", "bilinear", "trilinear"):
        if module.align_corners or module.scale_factor is None:
            return None  # depends on the image's size
        factor = _axis(module.scale_factor, axis)
        # Pixel centres: output o lies at (o + 0.5) / factor - 0.5, between two input pixels.
        return lambda out: (
            math.floor(Fraction(2 * out[0] + 1, 2 * factor) - Fraction(1, 2)),
            math.ceil(Fraction(2 * out[1] + 1, 2 * factor) - Fraction(1, 2)),
        )
    return None


def _scale(module: nn.Module) -> Fraction:
    """Input pixels per output pixel of a module."""
    if isinstance(module, _WINDOWED):
        return Fraction(_axis(module.stride, 0))
    if isinstance(module, _TRANSPOSED):
        return Fraction(1, _axis(module.stride, 0))
    if isinstance(module, nn.Upsample) and module.scale_factor is not None:
        return Fraction(1, _axis(module.scale_factor, 0))
    return Fraction(1)


class NetworkGraph:
    """The local dependencies of a fully convolutional network.

    Raises ModelError for an operation whose output depends on more than a fixed neighbourhood, with
    its layer's name.
    """

    def __init__(self, network: nn.Module) -> None:
        self._traced = fx.symbolic_trace(network)
        self._modules = dict(self._traced.named_modules())
        self._scales = self._check()

    def _check(self) -> dict[fx.Node, Fraction]:
        """Input pixels per pixel of every node."""
        scales: dict[fx.Node, Fraction] = {}
        for node in self._traced.graph.nodes:
            inputs = node.all_input_nodes
            known = {scales[i] for i in inputs}
            scale = max(known, default=Fraction(1))
            if node.op == "call_module":
                module = self._modules[str(node.target)]
                if _dependencies(module, 0) is None:
                    raise ModelError(
                        f"layer {node.target!r} ({type(module).__name__}) sees more than a fixed "
                        "neighbourhood, so no exact receptive field exists; use windows with taper"
                    )
                scale *= _scale(module)
            elif node.op == "call_function" and node.target not in _JOIN:
                raise ModelError(
                    f"operation {node.name!r} is not known to be local, so no exact receptive field "
                    "can be derived; use windows with taper"
                )
            scales[node] = scale
        return scales

    @property
    def output_stride(self) -> int:
        """Input pixels after which the network's grid of features repeats."""
        return math.lcm(*(s.numerator for s in self._scales.values()))

    @property
    def output_scale(self) -> int:
        """Input pixels per output pixel."""
        (output,) = (n for n in self._traced.graph.nodes if n.op == "output")
        scale = self._scales[output]
        if scale.denominator != 1:
            raise ModelError(f"the network enlarges its input {1 / scale} times; at most 1 is supported")
        return int(scale)

    def _input_interval(self, output_index: int, axis: int) -> Interval:
        wanted: dict[fx.Node, Interval] = {}

        def want(node: fx.Node, interval: Interval) -> None:
            old = wanted.get(node, interval)
            wanted[node] = (min(old[0], interval[0]), max(old[1], interval[1]))

        for node in reversed(self._traced.graph.nodes):
            if node.op == "output":
                wanted[node] = (output_index, output_index)
            if node.op == "placeholder" or node not in wanted:
                continue
            needed = wanted[node]
            if node.op == "call_module":
                back = _dependencies(self._modules[str(node.target)], axis)
                assert back is not None  # _check refused the others
                needed = back(needed)
            for source in node.all_input_nodes:
                want(source, needed)
        (image,) = (n for n in self._traced.graph.nodes if n.op == "placeholder")
        return wanted[image]

    def phase_reach(self, phase: int, *, axis: int) -> Reach:
        """Exact reach of the output pixels at `phase` modulo the output stride (input pixels)."""
        scale = self.output_scale
        index = 1000 * self.output_stride // scale + phase
        first, last = self._input_interval(index, axis)
        # An output pixel coarser than the input is held to start at its first input pixel.
        return Reach(before=index * scale - first, after=last - index * scale)

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
