"""Which calls of functions and methods are known to see a fixed neighbourhood, and as what operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from wsiseg.graph.modules import AVERAGE_POOLS, MAX_POOLS, NotLocal, of_module
from wsiseg.graph.operations import Operation, Pointwise

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


def splits(node: fx.Node) -> bool:
    """True for what makes several tensors at once."""
    return node.target in ("chunk", "split", torch.chunk, torch.split)


def call_changes_input(node: fx.Node) -> bool:
    """True for a call of a function or method that works in place."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    in_place = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    return node.target in in_place or bool(node.kwargs.get("inplace"))


def of_call(node: fx.Node, constants: dict[fx.Node, Any]) -> Operation:
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
    joined: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    if function is not torch.cat:
        joined = node.args

    def count(channels: Sequence[int]) -> int:
        if function is not torch.cat:
            return max(*channels, *wide, 1)
        return sum(channels[sources.index(n)] for n in joined)

    joins = (
        function in (torch.add, torch.cat)
        and len(sources) > 1
        and not constants.keys() & node.all_input_nodes
    )
    axes = per_channel[0].ndim - 2 if per_channel else None
    plain = joins and (function is torch.cat or not kwargs)
    return Pointwise(
        call,
        count,
        into=call if joins else None,
        constant_axes=axes,
        joined=tuple(sources.index(n) for n in joined) if plain else (),
        joins=function if plain else None,
    )


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
