"""Which modules of torch are known to see a fixed neighbourhood, and as what operations on rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsiseg.graph.operations import Operation, PerAxis, Pointwise, Resize, Transposed, Window
from wsiseg.models.inference import (
    IN_FLOAT32,
    FixedNorm,
    MeanPool2d,
    MeanPool3d,
    OneDnnConv3d,
    convolve_3d,
    mean_pool,
)

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    OneDnnConv3d: convolve_3d,
}
TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}
for known in (CONVOLUTIONS, TRANSPOSED):
    known.update({IN_FLOAT32[kind]: function for kind, function in known.items() if kind in IN_FLOAT32})
AVERAGE_POOLS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.AvgPool1d: F.avg_pool1d,
    nn.AvgPool2d: F.avg_pool2d,
    nn.AvgPool3d: F.avg_pool3d,
    MeanPool2d: mean_pool,
    MeanPool3d: mean_pool,
}
MAX_POOLS = {nn.MaxPool1d: F.max_pool1d, nn.MaxPool2d: F.max_pool2d, nn.MaxPool3d: F.max_pool3d}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softmax2d,
    nn.Softplus, nn.Softsign, nn.Tanh,
)  # fmt: skip
OVER_CHANNELS = (nn.Softmax, nn.LogSoftmax)


class NotLocal(Exception):
    """Why an operation cannot be followed row by row; completes "layer x (kind) ..."."""


def changes_input(module: nn.Module) -> bool:
    """True for a module that works in place."""
    return bool(getattr(module, "inplace", False))


def of_module(module: nn.Module) -> Operation:
    """A module as an operation on rows. Raises NotLocal."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise NotLocal("has hooks, which would not run; remove them (parametrisations: make them permanent)")
    for kinds, build in (
        (CONVOLUTIONS, _convolution),
        (TRANSPOSED, _transposed),
        ((*AVERAGE_POOLS, *MAX_POOLS), _pool),
        ((nn.Upsample, nn.UpsamplingNearest2d), _resize),
        ((*BATCH_NORMS, *DROPOUTS), _in_evaluation),
        (ACTIVATIONS, _out_of_place),
    ):
        if type(module) in kinds:
            return build(module)
    if type(module) is FixedNorm:
        return Pointwise(module, into=module)
    if isinstance(module, OVER_CHANNELS) and module.dim == 1:
        return Pointwise(module)
    raise NotLocal("sees more than a fixed neighbourhood, or is not known")


def _in_evaluation(module: Any) -> Pointwise:
    if isinstance(module, BATCH_NORMS) and module.running_mean is None:
        raise NotLocal("normalises by the statistics of the whole image")
    if module.training:
        raise NotLocal("is in training mode; call eval() first")
    return Pointwise(module)


def _out_of_place(module: Any) -> Pointwise:
    if changes_input(module):
        module = copy.copy(module)
        module.inplace = False
    return Pointwise(module)


def _convolution(module: Any) -> Window:
    function = CONVOLUTIONS[type(module)]
    padding: PerAxis | str = module.padding
    if module.padding_mode != "zeros":
        raise NotLocal(f"pads with {module.padding_mode!r}; only zeros are supported")
    if padding == "valid":
        padding = 0
    elif padding == "same":
        totals = tuple(d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True))
        if any(n % 2 for n in totals):
            raise NotLocal("pads one side more than the other (padding='same' with an even kernel)")
        padding = tuple(n // 2 for n in totals)
    assert not isinstance(padding, str)

    def convolve(pixels: Tensor, around: tuple[int, ...]) -> Tensor:
        pixels = pixels.to(module.weight.dtype)  # the last layer's may be wider
        return function(
            pixels, module.weight, module.bias, module.stride, around, module.dilation, module.groups
        )

    return Window(
        convolve,
        module.kernel_size,
        module.stride,
        padding,
        module.dilation,
        out_channels=module.out_channels,
    )


def _transposed(module: Any) -> Transposed:
    function = TRANSPOSED[type(module)]

    def convolve(pixels: Tensor, around: tuple[int, ...], beyond: tuple[int, ...]) -> Tensor:
        pixels = pixels.to(module.weight.dtype)
        return function(
            pixels, module.weight, module.bias, module.stride, around, beyond, module.groups, module.dilation
        )

    return Transposed(
        convolve,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.output_padding,
        module.dilation,
    )


def _plain(value: Any) -> PerAxis:
    """A number, or one for every axis, as torch accepts them."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values if len(values) > 1 else values[0]


def _pool(module: Any) -> Window:
    kernel, stride, padding = (_plain(v) for v in (module.kernel_size, module.stride, module.padding))
    if module.ceil_mode:
        raise NotLocal("rounds its size up (ceil_mode), which depends on the image's size")
    if type(module) in MAX_POOLS:
        if module.return_indices:
            raise NotLocal("returns places in the whole image (return_indices)")
        largest = MAX_POOLS[type(module)]

        def highest(pixels: Tensor, around: tuple[int, ...]) -> Tensor:
            return largest(pixels, module.kernel_size, module.stride, around, module.dilation)

        return Window(highest, kernel, stride, padding, _plain(module.dilation), outside=-torch.inf)
    average = AVERAGE_POOLS[type(module)]
    divisor = () if isinstance(module, nn.AvgPool1d) else (module.divisor_override,)

    def mean(pixels: Tensor, around: tuple[int, ...]) -> Tensor:
        if average is mean_pool:
            return mean_pool(pixels, module, around)
        rest = (module.ceil_mode, module.count_include_pad, *divisor)
        averaged: Tensor = average(pixels, module.kernel_size, module.stride, around, *rest)
        return averaged

    by_area = not module.count_include_pad and divisor in ((), (None,))
    return Window(mean, kernel, stride, padding, mean_of_inside=by_area)


def _resize(module: Any) -> Resize:
    linear = module.mode in ("linear", "bilinear", "trilinear")
    if not linear and module.mode not in ("nearest", "nearest-exact"):
        raise NotLocal(f"interpolates by {module.mode!r}; nearest and linear are supported")
    if module.scale_factor is None:
        raise NotLocal("makes an image of a given size")
    if module.align_corners:
        raise NotLocal("aligns corners, which depends on the image's size")
    factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,)
    if any(f != int(f) or f < 1 for f in factors):
        raise NotLocal(f"enlarges by {module.scale_factor}; whole factors are supported")
    whole = tuple(int(f) for f in factors)
    return Resize(module, whole if len(whole) > 1 else whole[0], linear=linear)
