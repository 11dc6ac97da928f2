"""From a network's own `forward` to layers that make rows, by `torch.fx`: nothing is defined twice."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from wsiseg.errors import ModelError
from wsiseg.graph.calls import call_changes_input, of_call, splits
from wsiseg.graph.modules import DROPOUTS, NotLocal, changes_input, of_module
from wsiseg.graph.operations import Operation
from wsiseg.models.inference import LEAVES


@dataclass(frozen=True)
class Layer:
    """One operation of a network; `inputs` are numbers of layers before it, layer 0 is the image."""

    name: str
    operation: Operation | None  # None: the image
    inputs: tuple[int, ...] = ()


class _Proxy(fx.Proxy):
    """Records `x += y` as what it is: torch.fx takes it for `x = x + y`, which leaves views of x alone."""

    def _in_place(self, function: Any, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)


# What following a network's Python code ends in where that depends on the image.
_UNTRACEABLE = (
    fx.proxy.TraceError, NameError, TypeError, ValueError, AttributeError, IndexError, KeyError,
    AssertionError, RuntimeError,
)  # fmt: skip


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def trace(network: nn.Module) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """Layers in an order in which they can be computed, and which of them are outputs.

    Raises ModelError for what cannot be followed, with the layer's name.
    """
    traced = _followed(network)
    modules = dict(traced.named_modules())
    layers: list[Layer] = []
    number: dict[fx.Node, int] = {}
    constants: dict[fx.Node, Any] = {}
    *nodes, output = traced.graph.nodes
    for node in nodes:
        if node.op == "get_attr":
            constants[node] = _attribute(traced, str(node.target))
        elif node.all_input_nodes and all(n in constants for n in node.all_input_nodes):
            constants[node] = _computed(node, constants, modules)
        elif node.op == "placeholder":
            if layers:
                raise ModelError(f"the network takes more than an image: {node.name!r}")
            number[node] = 0
            layers.append(Layer(node.name, None))
        else:
            name, operation = _operation(node, modules, constants)
            if operation is None:  # several tensors at once: what picks one of them is a layer
                continue
            sources = dict.fromkeys(_tensors(node, constants))
            number[node] = len(layers)
            layers.append(Layer(name, operation, tuple(number[n] for n in sources)))
    return tuple(layers), _outputs(output, number)


def _followed(network: nn.Module) -> fx.GraphModule:
    """What a network's `forward` does to an image. Raises ModelError."""
    try:
        return fx.GraphModule(network, _Tracer().trace(network))
    except _UNTRACEABLE as err:
        reason = next(iter(str(err).strip().splitlines()), type(err).__name__)
        if "Proxy" in reason or "symbolically traced" in reason:
            reason = "what it does depends on the size or the values of its image"
        raise ModelError(f"{type(network).__name__}.forward cannot be followed: {reason}") from None


def _outputs(node: fx.Node, number: dict[fx.Node, int]) -> tuple[int, ...]:
    """The layers that a network puts out. Raises ModelError."""
    given: list[fx.Node] = []
    fx.map_arg(node.args, given.append)
    for n in given:
        if n not in number:
            raise ModelError(f"the network puts out {n.name!r}, which is no layer")
    return tuple(number[n] for n in given)


def _tensors(node: fx.Node, constants: dict[fx.Node, Any]) -> list[fx.Node]:
    """The nodes that a layer reads, seen through the ones that only split."""
    return [
        s
        for n in node.all_input_nodes
        if n not in constants
        for s in (n.all_input_nodes if splits(n) else [n])
    ]


def _computed(node: fx.Node, constants: dict[fx.Node, Any], modules: dict[str, nn.Module]) -> Any:
    """What a node makes of constants alone."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), constants.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = modules[str(node.target)] if node.op == "call_module" else node.target
    return function(*args, **kwargs)


def _attribute(traced: fx.GraphModule, target: str) -> Any:
    value: Any = traced
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _is_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """True for what may hand on the memory of its input."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return changes_input(module) or isinstance(module, (nn.Identity, *DROPOUTS))
    return (
        splits(node) or call_changes_input(node) or node.target in (operator.getitem, "contiguous", F.dropout)
    )


def _same_memory(before: fx.Node, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """All nodes before one that may lie in the memory of its input."""
    node = before.all_input_nodes[0]
    while _is_view(node, modules) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    found, new = {node}, [node]
    while new:
        views = [u for u in new.pop().users if u < before and u not in found and _is_view(u, modules)]
        found |= set(views)
        new += views
    return found


def _check_in_place(node: fx.Node, modules: dict[str, nn.Module], *, changed: bool) -> None:
    """Rows are never changed in place here, so nobody may read them afterwards."""
    if not changed:
        return
    later = sorted({u for n in _same_memory(node, modules) for u in n.users if node < u})
    if later:
        raise NotLocal(f"changes its input in place, which {later[0].name!r} reads afterwards")


def _operation(
    node: fx.Node, modules: dict[str, nn.Module], constants: dict[fx.Node, Any]
) -> tuple[str, Operation | None]:
    """Name and operation of a node. Raises ModelError with the layer's name."""
    name, kind = node.name, node.name
    try:
        if node.op == "call_module":
            name = str(node.target)
            module = modules[name]
            kind = type(module).__name__
            _check_in_place(node, modules, changed=changes_input(module))
            return name, of_module(module)
        if splits(node):
            return name, None
        kind = str(getattr(node.target, "__name__", node.target))
        _check_in_place(node, modules, changed=call_changes_input(node))
        return name, of_call(node, constants)
    except NotLocal as err:
        raise ModelError(f"layer {name!r} ({kind}) {err}") from None
