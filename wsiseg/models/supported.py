"""Which operations of torch are known to see a fixed neighbourhood, and as what."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from wsiseg.models.inference import FixedNorm, MeanPool2d, MeanPool3d, OneDnnConv3d, convolve_3d, mean_pool
from wsiseg.models.operations import Operation, PerAxis, Pointwise, Resize, Transposed, Window

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    OneDnnConv3d: convolve_3d,
}
TRANSPOSED = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}
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

# What changes its input in place is computed without doing so: rows of it may still be needed.
FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    f: f
    for f in (
        operator.add, operator.sub, operator.mul, operator.truediv, operator.neg,
        torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.clamp,
        torch.relu, torch.sigmoid, torch.tanh, torch.maximum, torch.minimum,
        F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid,
        F.mish, F.prelu, F.relu, F.relu6, F.selu, F.silu, F.sigmoid, F.softplus, F.tanh,
    )
}  # fmt: skip
FUNCTIONS |= {
    operator.add: torch.add, operator.iadd: torch.add, operator.isub: operator.sub,
    operator.imul: operator.mul, operator.itruediv: operator.truediv,
}  # fmt: skip
METHODS = {
    name: getattr(Tensor, name)
    for name in ("add", "sub", "mul", "div", "neg", "relu", "sigmoid", "tanh", "clamp", "clone", "contiguous")
}
METHODS |= {f"{name}_": METHODS[name] for name in ("add", "sub", "mul", "div", "relu", "sigmoid", "tanh")}
ALONG_CHANNELS = {torch.cat: 1, F.softmax: 1, F.log_softmax: 1, torch.softmax: 1, torch.log_softmax: 1}
"""Functions with an axis, and where among their arguments it stands."""

POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding")
FUNCTIONAL_POOLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **{
        f: (m, (*POOL_ARGUMENTS, "ceil_mode", "count_include_pad", "divisor_override"))
        for m, f in AVERAGE_POOLS.items()
    },
    **{
        f: (m, (*POOL_ARGUMENTS, "dilation", "ceil_mode", "return_indices"))
        for m, f in MAX_POOLS.items()
    },
}  # fmt: skip
RESIZE_ARGUMENTS = ("input", "size", "scale_factor", "mode", "align_corners")


class NotLocal(Exception):
    """Why an operation cannot be followed row by row; completes "layer x (kind) ..."."""


def splits(node: fx.Node) -> bool:
    """True for what makes several tensors at once."""
    return node.target in ("chunk", "split", torch.chunk, torch.split)


def changes_input(called: nn.Module | fx.Node) -> bool:
    """True for a module, or a call of a function or method, that works in place."""
    if isinstance(called, nn.Module):
        return bool(getattr(called, "inplace", False))
    if called.op == "call_method":
        return str(called.target).endswith("_")
    in_place = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    return called.target in in_place or bool(called.kwargs.get("inplace"))


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


def of_function(node: fx.Node, constants: dict[fx.Node, Any]) -> Operation:
    """A call of a function or method as an operation on rows. Raises NotLocal."""
    target = node.target
    if target is not operator.getitem and any(splits(n) for n in node.all_input_nodes):
        raise NotLocal("takes all parts of a tensor at once")
    if target is operator.getitem:
        return _picked(node)
    if target in FUNCTIONAL_POOLS:
        kind, names = FUNCTIONAL_POOLS[target]
        given = _by_name(node, names)
        stride = given.pop("stride", None)
        return of_module(kind(stride=stride, **given))
    if target is F.interpolate:
        given = _by_name(node, RESIZE_ARGUMENTS)
        if isinstance(given.get("scale_factor"), list):
            given["scale_factor"] = tuple(given["scale_factor"])
        return of_module(nn.Upsample(**{k: v for k, v in given.items() if k in RESIZE_ARGUMENTS}))
    if target is F.dropout and not _by_name(node, ("input", "p", "training")).get("training", True):
        return Pointwise(lambda pixels: pixels)
    if target in ALONG_CHANNELS:
        if _by_name(node, ("input", "dim")).get("dim") != 1:
            raise NotLocal("works along another axis than the channels")
        if any(n in constants for n in node.all_input_nodes):
            raise NotLocal("joins a constant")
        return _pointwise(node, target, constants)
    found = METHODS.get(str(target)) if node.op == "call_method" else FUNCTIONS.get(target)
    if found is None:
        raise NotLocal("is not known to be local")
    if target is not F.prelu:
        _check_constants(node, constants)
    return _pointwise(node, found, constants)


def _by_name(node: fx.Node, names: Iterable[str]) -> dict[str, Any]:
    """Arguments after the tensor, by name."""
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    given.pop("input", None)
    given.pop("tensors", None)
    return given


def _check_constants(node: fx.Node, constants: dict[fx.Node, Any]) -> None:
    for used in node.all_input_nodes:
        value = constants.get(used)
        per_channel = (
            isinstance(value, Tensor) and value.ndim > 3 and value[0, :, ...].numel() == value.shape[1]
        )
        if isinstance(value, Tensor) and value.numel() > 1 and not per_channel:
            raise NotLocal(f"joins a constant of shape {tuple(value.shape)}; one per channel is supported")


def _pointwise(node: fx.Node, function: Callable[..., Tensor], constants: dict[fx.Node, Any]) -> Pointwise:
    sources = list(dict.fromkeys(n for n in node.all_input_nodes if n not in constants))
    kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}

    def call(*tensors: Tensor, **more: Tensor) -> Tensor:
        values = constants | dict(zip(sources, tensors, strict=True))
        args, named = fx.map_arg((node.args, kwargs), values.__getitem__)
        return function(*args, **named, **more)

    used = [constants[n] for n in node.all_input_nodes if n in constants]
    per_channel = [v for v in used if isinstance(v, Tensor) and v.ndim > 3]
    wide = [v.shape[1] for v in per_channel]

    def count(channels: Sequence[int]) -> int:
        if function is not torch.cat:
            return max(*channels, *wide, 1)
        joined: Any = node.args[0] if node.args else node.kwargs["tensors"]
        return sum(channels[sources.index(n)] for n in joined)

    joins = (
        function in (torch.add, torch.cat)
        and len(sources) > 1
        and not constants.keys() & node.all_input_nodes
    )
    axes = per_channel[0].ndim - 2 if per_channel else None
    return Pointwise(call, count, into=call if joins else None, constant_axes=axes)


def _picked(node: fx.Node) -> Pointwise:
    """A slice of the channels, or one of the pieces into which they were split."""
    source, index = node.args
    if isinstance(source, fx.Node) and splits(source):
        if _by_name(source, ("input", "size", "dim")).get("dim") != 1:
            raise NotLocal("takes a part along another axis than the channels")
        if not isinstance(index, int):
            raise NotLocal("takes several parts of a tensor at once")
        name = str(getattr(source.target, "__name__", source.target))
        named = (source.kwargs.get(n) for n in ("chunks", "split_size", "split_size_or_sections"))
        size = source.args[1] if len(source.args) > 1 else next(n for n in named if n is not None)

        def piece(pixels: Tensor) -> Tensor:
            picked: Tensor = getattr(pixels, name)(size, dim=1)[index]
            return picked

        return Pointwise(piece, lambda counts: piece(torch.empty(1, counts[0])).shape[1])
    whole = slice(None)
    if isinstance(index, tuple) and len(index) >= 2 and index[0] == whole and isinstance(index[1], slice):
        rest = [i for i in (index[0], *index[2:]) if i is not Ellipsis]
        if all(i == whole for i in rest):
            part = index[1]
            return Pointwise(
                lambda pixels: pixels[index], lambda counts: len(range(*part.indices(counts[0])))
            )
    raise NotLocal("takes a part that is not a slice of channels")
