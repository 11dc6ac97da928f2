"""Networks drawn at random whose layers all see a fixed neighbourhood, and images that fit them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

Draw = st.DrawFn
PerAxis = tuple[int, ...]

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOLS: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Function(nn.Module):
    """A function, as a module."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def extra_repr(self) -> str:
        return self.name

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Joined(nn.Module):
    """Branches from one input, joined."""

    def __init__(self, paths: Sequence[nn.Module], how: str) -> None:
        super().__init__()
        self.paths, self.how = nn.ModuleList(paths), how

    def extra_repr(self) -> str:
        return self.how

    def forward(self, x: Tensor) -> Tensor:
        made: list[Tensor] = [path(x) for path in self.paths]
        if self.how == "cat":
            return torch.cat(made, dim=1)
        total = made[0]
        for one in made[1:]:
            if self.how == "add":
                total = total + one
            elif self.how == "iadd":
                total += one
            else:
                total = total * torch.sigmoid(one)
        return total


class Stages(nn.Module):
    """One stage after the other; the results of some come out, in any order."""

    def __init__(self, stages: Sequence[nn.Module], outputs: Sequence[int]) -> None:
        super().__init__()
        self.stages, self.outputs = nn.ModuleList(stages), tuple(outputs)

    def extra_repr(self) -> str:
        return f"outputs={self.outputs}"

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = []
        for stage in self.stages:
            x = stage(x)
            made.append(x)
        return tuple(made[i] for i in self.outputs)


@dataclass
class Growing:
    """A network while it is drawn: the numbers that its layers so far make of the image."""

    made: Tensor
    limit: int  # what the output stride has to divide
    scale: Fraction = Fraction(1)  # image rows per row of `made`

    @property
    def sizes(self) -> PerAxis:
        return tuple(self.made.shape[2:])

    @property
    def channels(self) -> int:
        return int(self.made.shape[1])

    def add(self, layer: nn.Module, *, scale: Fraction = Fraction(1)) -> nn.Module:
        """Take in a layer."""
        with torch.inference_mode():
            self.made = layer.eval()(self.made.clone())
        self.scale *= scale
        return layer

    def branch(self) -> Growing:
        return Growing(self.made, self.limit, self.scale)

    def strides(self, *choices: int) -> list[int]:
        """Those strides for which images of the intended size remain multiples of the output stride."""
        return [s for s in choices if self.limit % (self.scale * s).numerator == 0]


def _windows(size: int, *, stride: int = 1, shrink: int | None = None) -> list[PerAxis]:
    """Kernels, dilations and paddings that fit; `shrink`: the pixels that get lost beside the stride."""
    fitting: list[PerAxis] = []
    for k, d, p in itertools.product((1, 2, 3, 5), (1, 2, 3), range(4)):
        lost = d * (k - 1) - 2 * p
        kept = (size - lost - 1) // stride + 1
        if kept >= 1 and not (k == 1 and d > 1) and (shrink is None or lost == shrink):
            fitting.append((k, d, p))
    return fitting


def _enlarging(factor: int) -> list[PerAxis]:
    """Kernels, dilations, paddings and output paddings with which n pixels become factor * n."""
    return [
        (k, d, p, o)
        for k, d, p, o in itertools.product(range(1, 5), (1, 2), range(3), range(3))
        if d * (k - 1) + 1 - 2 * p + o == factor and o < max(factor, d)
    ]


def _axes(draw: Draw, options: Sequence[Sequence[PerAxis]]) -> list[PerAxis]:
    """One of the options for each axis; a list for each parameter."""
    drawn = [draw(st.sampled_from(list(one))) for one in options]
    return [tuple(values) for values in zip(*drawn, strict=True)]


def _convolution(
    draw: Draw, net: Growing, *, stride: PerAxis, shrink: PerAxis | None, channels: int
) -> nn.Module:
    options = [
        _windows(n, stride=s, shrink=None if shrink is None else shrink[axis])
        for axis, (n, s) in enumerate(zip(net.sizes, stride, strict=True))
    ]
    kernel, dilation, padding = _axes(draw, options)
    given: PerAxis | str = padding
    centred = all(2 * p == d * (k - 1) for k, d, p in zip(kernel, dilation, padding, strict=True))
    if centred and max(stride) == 1 and draw(st.booleans()):
        given = "same"
    elif max(padding) == 0 and draw(st.booleans()):
        given = "valid"
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if net.channels % g == 0 and channels % g == 0]))
    layer = CONVOLUTIONS[len(stride)](
        net.channels,
        channels,
        kernel,
        stride=stride,
        padding=given,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    return net.add(layer, scale=Fraction(stride[0]))


def _pool(draw: Draw, net: Growing, *, stride: PerAxis, shrink: PerAxis | None) -> nn.Module | None:
    """A pooling, None where there is none with that geometry."""
    highest = draw(st.booleans())
    options = [
        [
            (k, d, p)
            for k, d, p in _windows(n, stride=s, shrink=None if shrink is None else shrink[axis])
            if 2 * p <= k <= n and (d == 1 or (highest and d * (k - 1) < n))  # never in padding alone
        ]
        for axis, (n, s) in enumerate(zip(net.sizes, stride, strict=True))
    ]
    if not all(options):
        return None
    kernel, dilation, padding = _axes(draw, options)
    if highest:
        layer = MAX_POOLS[len(stride)](kernel, stride=stride, padding=padding, dilation=dilation)
    else:
        rest = {} if len(stride) == 1 else {"divisor_override": draw(st.sampled_from([None, 3]))}
        layer = AVERAGE_POOLS[len(stride)](
            kernel, stride=stride, padding=padding, count_include_pad=draw(st.booleans()), **rest
        )
    return net.add(layer, scale=Fraction(stride[0]))


def _norm(draw: Draw, net: Growing) -> nn.Module:
    norm = BATCH_NORMS[len(net.sizes)](net.channels)
    for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        nn.init.uniform_(values, 0.5, 1.5)
    return net.add(norm)


def _halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat([b, a, b], dim=1)


FUNCTIONS = [
    Function("x[:, 1:] and x[:, :1]", lambda x: torch.cat((x[:, 1:], x[:, :1]), 1)),
    Function("chunks", _halves),
    Function("split", lambda x: torch.cat([x, torch.split(x, 1, dim=1)[0]], dim=1)),
    Function("one channel times all", lambda x: x[:, :1] * x),
    Function("1 - x / 2", lambda x: 1 - x / 2),
    Function("x + x", lambda x: x + x),
    Function("softmax", lambda x: F.softmax(x, dim=1)),
    Function("leaky", lambda x: torch.maximum(F.leaky_relu(x, 0.1), x.tanh())),
    Function("clamp", lambda x: torch.clamp(x, -0.5, 0.5).contiguous()),
]
ACTIVATIONS = [nn.ReLU, nn.PReLU, nn.SiLU, nn.Identity, nn.Dropout]


def _pointwise(draw: Draw, net: Growing) -> nn.Module:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return _norm(draw, net)
    if kind == 1:
        return net.add(draw(st.sampled_from(ACTIVATIONS))())
    return net.add(draw(st.sampled_from(FUNCTIONS)))


def _neighbourhood(
    draw: Draw, net: Growing, *, stride: PerAxis, shrink: PerAxis | None, channels: int
) -> nn.Module:
    """A convolution, perhaps with an activation in place behind it, or a pooling."""
    if draw(st.integers(0, 3)) == 0 and (pool := _pool(draw, net, stride=stride, shrink=shrink)):
        return pool
    layer = _convolution(draw, net, stride=stride, shrink=shrink, channels=channels)
    if draw(st.booleans()):
        return nn.Sequential(layer, net.add(nn.LeakyReLU(0.2, inplace=True)))
    return layer


def _width(draw: Draw) -> int:
    return draw(st.sampled_from([2, 3, 4]))


def _up(draw: Draw, net: Growing, factors: PerAxis) -> nn.Module:
    """What enlarges by whole factors."""
    kind = draw(st.sampled_from(["nearest", "linear", "transposed"]))
    if kind == "transposed":
        kernel, dilation, padding, beyond = _axes(draw, [_enlarging(f) for f in factors])
        layer: nn.Module = TRANSPOSED[len(factors)](
            net.channels, _width(draw), kernel, factors, padding, beyond, dilation=dilation
        )
    else:
        mode = "nearest" if kind == "nearest" else LINEAR[len(factors)]
        layer = nn.Upsample(scale_factor=factors, mode=mode)
    return net.add(layer, scale=Fraction(1, factors[0]))


def _free_transposed(draw: Draw, net: Growing) -> nn.Module:
    """A transposed convolution of any geometry that leaves something."""
    options = [
        [
            (k, s, p, o, d)
            for k, s, p, o, d in itertools.product(range(1, 4), (1, 2, 3), range(3), range(2), (1, 2))
            if (n - 1) * s + d * (k - 1) + 1 - 2 * p + o >= 1 and o < max(s, d) and (axis > 0 or s < 3)
        ]
        for axis, n in enumerate(net.sizes)
    ]
    kernel, stride, padding, beyond, dilation = _axes(draw, options)
    layer = TRANSPOSED[len(kernel)](
        net.channels, _width(draw), kernel, stride, padding, beyond, dilation=dilation
    )
    return net.add(layer, scale=Fraction(1, stride[0]))


def _siblings(draw: Draw, net: Growing, *, depth: int) -> nn.Module:
    """Branches that change the size alike: windows of equal loss, then layers that keep the size."""
    ndim = len(net.sizes)
    how = draw(st.sampled_from(["add", "iadd", "mul", "cat"]))
    width = _width(draw)
    stride = (draw(st.sampled_from(net.strides(1, 1, 2))), *(1,) * (ndim - 1))
    shrink = tuple(draw(st.sampled_from([t for t in (0, 0, 2, -2) if t + 2 < n])) for n in net.sizes)
    paths, ends = [], []
    for _ in range(draw(st.integers(2, 3))):
        branch = net.branch()
        layers = [_convolution(draw, branch, stride=stride, shrink=shrink, channels=width)]
        if draw(st.booleans()):
            layers.append(_keeping(draw, branch, depth=depth))
            if how != "cat":
                layers.append(_project(branch, width))
        paths.append(nn.Sequential(*layers))
        ends.append(branch)
    joined = Joined(paths, how)
    net.add(joined, scale=Fraction(stride[0]))
    return joined


def _skip(draw: Draw, net: Growing, *, depth: int) -> nn.Module:
    """Down and up again beside a way that keeps the size."""
    factor = draw(st.sampled_from([f for f in net.strides(1, 2, 3) if net.sizes[0] % f == 0]))
    factors = (factor, *(draw(st.sampled_from([f for f in (1, 2) if n % f == 0])) for n in net.sizes[1:]))
    lost = tuple(
        draw(st.sampled_from([t for t in range(f) if t + 1 - f <= n - 1]))
        for f, n in zip(factors, net.sizes, strict=True)
    )
    how, width = draw(st.sampled_from(["add", "mul", "cat"])), net.channels
    deep, beside = net.branch(), net.branch()
    layers = [_neighbourhood(draw, deep, stride=factors, shrink=lost, channels=_width(draw))]
    if draw(st.booleans()):
        layers.append(_keeping(draw, deep, depth=depth))
    layers.append(_up(draw, deep, factors))
    short: list[nn.Module] = [_keeping(draw, beside, depth=0)] if draw(st.booleans()) else [nn.Identity()]
    if how != "cat":
        layers.append(_project(deep, width))
        if beside.channels != width:
            short.append(_project(beside, width))
    paths = [nn.Sequential(*short), nn.Sequential(*layers)]
    return net.add(Joined(paths if draw(st.booleans()) else paths[::-1], how))


def _project(net: Growing, channels: int) -> nn.Module:
    return net.add(CONVOLUTIONS[len(net.sizes)](net.channels, channels, 1))


def _keeping(draw: Draw, net: Growing, *, depth: int) -> nn.Module:
    """Something that keeps the size."""
    kind = draw(st.integers(0, 3 if depth else 1))
    ndim = len(net.sizes)
    if kind == 0:
        return _pointwise(draw, net)
    if kind == 1:
        return _neighbourhood(draw, net, stride=(1,) * ndim, shrink=(0,) * ndim, channels=_width(draw))
    return _skip(draw, net, depth=depth - 1)


def _anything(draw: Draw, net: Growing) -> nn.Module:
    """Any layer or branch."""
    kind = draw(st.sampled_from(["window", "keeping", "skip", "siblings", "up", "transposed"]))
    ndim = len(net.sizes)
    if kind == "window":
        stride = (draw(st.sampled_from(net.strides(1, 2, 3))), *(draw(st.sampled_from([1, 2])),) * (ndim - 1))
        return _neighbourhood(draw, net, stride=stride, shrink=None, channels=_width(draw))
    if kind in ("keeping", "skip", "siblings"):
        return {"keeping": _keeping, "skip": _skip, "siblings": _siblings}[kind](draw, net, depth=1)
    large_enough = net.scale < Fraction(1, 2) or math.prod(net.sizes) > 3000
    if kind == "up" and not large_enough:
        return _up(draw, net, tuple(draw(st.sampled_from([1, 2, 3])) for _ in range(ndim)))
    return _pointwise(draw, net) if large_enough else _free_transposed(draw, net)


@dataclass
class Case:
    """A network, an image of a multiple of its output stride, and how to stream it."""

    network: nn.Module
    image: Tensor
    bands: int  # output strides per band
    part: tuple[float, float]  # of the rows of the first output

    def rows(self, height: int) -> tuple[int, int]:
        """The part, in rows of an output of some height."""
        first = int(self.part[0] * (height - 1))
        return first, first + 1 + int(self.part[1] * (height - first - 1))


@st.composite
def cases(draw: Draw, *, ndim: int, dtype: torch.dtype, outputs: int = 1) -> Case:
    """Networks of up to four stages that end in one or several outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 9)))
        limit = draw(st.sampled_from([1, 2, 3, 4, 6, 12] if ndim < 3 else [1, 2, 4, 6]))
        rows = limit * draw(st.integers(max(1, 5 // limit), max(2, 30 // limit)))
        rest = tuple(draw(st.integers(4, 13 if ndim < 3 else 6)) for _ in range(ndim - 1))
        image = torch.randn(1, draw(st.integers(2, 3)), rows, *rest)
        net = Growing(image, limit)
        stages = [_anything(draw, net) for _ in range(draw(st.integers(1 if outputs == 1 else 2, 4)))]
        network: nn.Module = nn.Sequential(*stages)
        if outputs > 1:
            which = st.lists(st.integers(0, len(stages) - 1), min_size=2, max_size=outputs, unique=True)
            network = Stages(stages, draw(which))
    parts = st.floats(0, 1, allow_nan=False)
    bands = draw(st.integers(1, max(1, 12 // limit)))
    return Case(network.eval().to(dtype), image.to(dtype), bands, (draw(parts), draw(parts)))
