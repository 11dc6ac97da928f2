"""What makes a trained network faster without changing what it computes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NARROW = 4
"""Channels up to which a CPU averages faster by a convolution."""


FUNCTIONS: dict[int, Any] = {2: (F.avg_pool2d, F.conv2d), 3: (F.avg_pool3d, F.conv3d)}  # by axes


def mean_pool(pixels: Tensor, pool: Any, padding: Any) -> Tensor:
    """Average pooling as the module `pool` does it, with another padding.

    torch averages an image of three channels that lie next to each other one number at a time; a
    convolution with constant weights is faster (equal but for the order of the sum).
    """
    axes, channels = pixels.ndim - 2, pixels.shape[1]
    average, convolve = FUNCTIONS[axes]
    plain = pool.count_include_pad and pool.divisor_override is None and not pool.ceil_mode
    made: Tensor
    if plain and channels <= NARROW and not pixels.is_cuda:
        kernel = pool.kernel_size if isinstance(pool.kernel_size, tuple) else (pool.kernel_size,) * axes
        each = torch.eye(channels, dtype=pixels.dtype).view(channels, channels, *(1,) * axes)
        weight = each.expand(channels, channels, *kernel) / math.prod(kernel)
        made = convolve(pixels, weight, stride=pool.stride, padding=padding)
    else:
        rest = (pool.ceil_mode, pool.count_include_pad, pool.divisor_override)
        made = average(pixels, pool.kernel_size, pool.stride, padding, *rest)
    return made


class MeanPool2d(nn.AvgPool2d):
    """Average pooling that is fast for few channels too."""

    def forward(self, input: Tensor) -> Tensor:
        return mean_pool(input, self, self.padding)


class MeanPool3d(nn.AvgPool3d):
    """Average pooling that is fast for few channels too."""

    def forward(self, input: Tensor) -> Tensor:
        return mean_pool(input, self, self.padding)


def convolve_3d(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """3-D convolution; on a CPU always by oneDNN.

    torch judges the size of an input without its last axis, and hands what it takes for small to a
    kernel that copies every neighbourhood first: for 3 x 3 x 3 weights 27 times the memory, and far slower.
    """
    if pixels.is_cuda or pixels.dtype != torch.float32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return F.conv3d(pixels, weight, bias, stride, padding, dilation, groups)
    return torch.mkldnn_convolution(pixels, weight, bias, padding, stride, dilation, groups)


class OneDnnConv3d(nn.Conv3d):
    """A 3-D convolution that is fast on small volumes too; padding in numbers, with zeros."""

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        assert not isinstance(padding, str)  # `for_inference` changes no other
        return convolve_3d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class FixedNorm(nn.Module):
    """Batch norm in evaluation, brought to one factor and one summand per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: Any, *, axes: int) -> None:
        super().__init__()
        plain = torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean)
        weight, bias = (norm.weight, norm.bias) if norm.affine else plain
        scale = weight / torch.sqrt(norm.running_var + norm.eps)
        shape = (1, -1, *(1,) * axes)
        self.register_buffer("scale", scale.detach().view(shape))
        self.register_buffer("shift", (bias - norm.running_mean * scale).detach().view(shape))

    def forward(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.addcmul(self.shift, pixels, self.scale, out=out)


FASTER_POOLS: dict[type[nn.Module], type[nn.Module]] = {nn.AvgPool2d: MeanPool2d, nn.AvgPool3d: MeanPool3d}
NAMED = ("same", "valid")
NORM_AXES: dict[type[nn.Module], int] = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


class InFloat32:
    """Before a layer's class: computes in float32, whatever comes in. Of the last, whose scores decide."""

    def forward(self, input: Tensor) -> Tensor:
        made: Tensor = super().forward(input.float())  # type: ignore[misc]
        return made


def _in_float32(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"{kind.__name__}InFloat32", (InFloat32, kind), {})


IN_FLOAT32: dict[type[nn.Module], type[nn.Module]] = {
    kind: _in_float32(kind)
    for kind in (nn.Conv2d, nn.Conv3d, OneDnnConv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
}
LEAVES = (FixedNorm, MeanPool2d, MeanPool3d, OneDnnConv3d, InFloat32)
"""Modules of this program that count as one operation."""


def for_inference(network: nn.Module, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of a network in evaluation with faster pooling, norms and 3-D convolutions, its numbers `dtype`.

    In a narrower type than float32 the last layer stays float32, if it is a convolution: few bits make ties.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) is nn.Conv3d and module.padding_mode == "zeros" and module.padding not in NAMED:
            module.__class__ = OneDnnConv3d
        if type(module) in FASTER_POOLS:
            module.__class__ = FASTER_POOLS[type(module)]
        for name, child in module.named_children():
            axes = NORM_AXES.get(type(child))
            if axes is not None and not child.training and child.running_mean is not None:
                setattr(module, name, FixedNorm(child, axes=axes))
    if dtype != torch.float32:
        network = network.to(dtype)
        *_, last = network.modules()
        if type(last) in IN_FLOAT32:
            last.__class__ = IN_FLOAT32[type(last)]
            last.float()
    return network
