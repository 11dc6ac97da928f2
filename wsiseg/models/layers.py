"""Building blocks of the ESPNet family, for any number of spatial axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_POOL: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
FUNCTIONAL_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}

ESP_DILATIONS = (1, 2, 4, 8, 16)


def conv(
    channels: int,
    out_channels: int,
    *,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    ndim: int,
) -> nn.Module:
    """Convolution, padded so that stride 1 keeps the size; without bias unless asked for."""
    return CONV[ndim](
        channels,
        out_channels,
        kernel,
        stride=stride,
        padding=dilation * (kernel - 1) // 2,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )


def up2(channels: int, *, ndim: int) -> nn.Module:
    """Learned up-sampling by two: a transposed 2-wide convolution with stride 2, without bias."""
    return CONV_TRANSPOSE[ndim](channels, channels, 2, stride=2, bias=False)


def down2(*, ndim: int) -> nn.Module:
    """Average pooling by two over 3-wide neighbourhoods; zeros outside count in the mean."""
    pool: nn.Module = AVG_POOL[ndim](3, stride=2, padding=1)
    return pool


def conv_of_doubled(x: Tensor, weight: Tensor) -> Tensor:
    """What a padded convolution makes of `x` (B, C, *axes) repeated twice along every axis, (B, O, *2 axes).

    Nothing is repeated: the two pixels that one becomes see it through sums of neighbouring taps, so that a
    7-wide kernel needs 5 taps an axis, and all pixels of a group are channels of one small convolution.
    `weight` is (O, C, *odd kernel).
    """
    ndim, out_channels, half = x.ndim - 2, weight.shape[0], weight.shape[-1] // 2
    reach = (half + 1) // 2
    taps = weight.new_zeros(2, 2 * reach + 1, weight.shape[-1])
    for second, tap in itertools.product(range(2), range(weight.shape[-1])):
        taps[second, (second + tap - half) // 2 + reach, tap] = 1
    for _ in range(ndim):  # each turn takes the first axis of the kernel and puts (2, taps) behind the last
        weight = torch.tensordot(weight, taps, dims=([2], [2]))
    places, near = range(2, 2 + 2 * ndim, 2), range(3, 3 + 2 * ndim, 2)
    small = weight.permute(0, *places, 1, *near).flatten(0, ndim)  # (O * 2 ** ndim, C, *taps)
    made: Tensor = FUNCTIONAL_CONV[ndim](x, small, padding=reach)  # (B, O * 2 ** ndim, *axes)
    made = made.reshape(x.shape[0], out_channels, *(2,) * ndim, *x.shape[2:])
    order = [axis for n in range(ndim) for axis in (2 + ndim + n, 2 + n)]
    return made.permute(0, 1, *order).reshape(x.shape[0], out_channels, *(2 * n for n in x.shape[2:]))


def hierarchical_fusion(branches: Iterable[Tensor]) -> Tensor:
    """The first branch and the running sums of all others, as channels one after the other.

    A generator is asked for one branch after the other, so that few are held at a time.
    """
    parts = iter(branches)
    fused = [next(parts)]  # the first branch takes no part in the running sum
    running = None
    for branch in parts:
        running = branch if running is None else running + branch
        fused.append(running)
    return torch.cat(fused, dim=1)


class NormAct(nn.Module):
    """Batch norm and PReLU with one slope per channel."""

    def __init__(self, channels: int, *, ndim: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.norm = BATCH_NORM[ndim](channels, eps=eps)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(x))
        return out


class ConvNormAct(nn.Module):
    """Convolution, batch norm, PReLU."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        eps: float = 1e-3,
        ndim: int,
    ) -> None:
        super().__init__()
        self.conv = conv(channels, out_channels, kernel=kernel, stride=stride, groups=groups, ndim=ndim)
        self.tail = NormAct(out_channels, ndim=ndim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(self.conv(x))
        return out


class ConvNormReLU(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        eps: float = 1e-3,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        self.conv = conv(
            channels, out_channels, kernel=kernel, stride=stride, dilation=dilation, bias=bias, ndim=ndim
        )
        self.norm = BATCH_NORM[ndim](out_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class ESP(nn.Module):
    """Efficient spatial pyramid: reduce, dilate in parallel, fuse hierarchically.

    Source: Mehta et al., ESPNet, ECCV 2018, section 3. With `stride=2` the reduction is a 3-wide
    strided convolution (the down-sampler); `residual` adds the input before the norm.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        residual: bool = True,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        if residual and (stride != 1 or channels != out_channels):
            raise ValueError(
                f"a residual unit keeps its shape; got {channels} -> {out_channels}, stride {stride}"
            )
        branch = out_channels // len(ESP_DILATIONS)
        # What does not divide evenly goes to the branch without dilation.
        first = out_channels - branch * (len(ESP_DILATIONS) - 1)
        if branch < 1:
            raise ValueError(f"{out_channels} output channels are too few for {len(ESP_DILATIONS)} branches")
        kernel = 3 if stride == 2 else 1
        self.residual = residual
        self.reduce = conv(channels, branch, kernel=kernel, stride=stride, ndim=ndim)
        self.branches = nn.ModuleList(
            conv(branch, first if d == 1 else branch, kernel=3, dilation=d, ndim=ndim) for d in ESP_DILATIONS
        )
        self.tail = NormAct(out_channels, ndim=ndim)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        out = hierarchical_fusion(branch(reduced) for branch in self.branches)
        if self.residual:
            out = x + out
        joined: Tensor = self.tail(out)
        return joined
