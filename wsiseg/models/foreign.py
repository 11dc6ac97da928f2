"""Networks that are not this program's own: MONAI's, exported graphs, and code that a card names."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsiseg.errors import ModelError

MONAI = "monai:"
MONAI_NETWORKS = ("DynUNet", "FlexibleUNet", "SegResNet", "SwinUNETR", "UNet", "VNet")
CODE = "python:"
EXPORTED = {".onnx": "onnx", ".pt2": "torch-export"}
"""Files that hold graph and weights, and the names that they have on a card."""
# What constructors of networks raise for arguments that do not suit them.
_REFUSALS = (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError)


def is_foreign(name: str) -> bool:
    """True for a network that is named by its library or module."""
    return name.startswith((MONAI, CODE))


def build_foreign(name: str, arguments: dict[str, Any], *, trust_code: bool) -> nn.Module:
    """A network of MONAI ("monai:UNet") or of any module ("python:package.module:function").

    Code outside MONAI is imported and run only where the user trusts it. Raises ModelError.
    """
    make = _of_monai(name) if name.startswith(MONAI) else _of_code(name, trust_code=trust_code)
    try:
        network = make(**arguments)
    except ImportError as err:
        raise ModelError(f"network {name!r} needs a library that is not installed: {err}") from None
    except _REFUSALS as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        raise ModelError(f"network {name!r} cannot be built: {reason}") from None
    if not isinstance(network, nn.Module):
        raise ModelError(f"network {name!r} gave {type(network).__name__}, not a torch module")
    return network


def _of_monai(name: str) -> Any:
    wanted = name.removeprefix(MONAI)
    if wanted not in MONAI_NETWORKS:
        raise ModelError(f"unknown network {name!r}; of MONAI are known: {', '.join(MONAI_NETWORKS)}")
    try:
        nets = importlib.import_module("monai.networks.nets")
    except ImportError:
        raise ModelError(f"network {name!r} needs MONAI; install it: pip install 'wsiseg[monai]'") from None
    return getattr(nets, wanted)


def _of_code(name: str, *, trust_code: bool) -> Any:
    module, _, function = name.removeprefix(CODE).partition(":")
    if not trust_code:
        raise ModelError(
            f"the card runs code of the module {module!r}; if you trust it, say so with --trust-code"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as err:
        raise ModelError(
            f"network {name!r} is not found: {err}; write python:package.module:function"
        ) from None


class ExportedGraph(nn.Module):
    """A network of which only the graph is known."""

    channels: int
    ndim: int

    def __deepcopy__(self, memo: Any) -> ExportedGraph:
        return self  # it holds no state, and its runtime may not be copied


class OnnxNetwork(ExportedGraph):
    """An ONNX graph, run by ONNX Runtime on the CPU; nothing but the graph's own operations is run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError:
            raise ModelError(f"{path} needs ONNX Runtime; install it: pip install 'wsiseg[onnx]'") from None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            # From memory: a graph can name files for its weights, which could lie anywhere.
            self._session = runtime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except OSError as err:
            raise ModelError(f"cannot read {path}: {err.strerror}") from None
        except Exception as err:  # noqa: BLE001 - the classes of its errors are not public
            reason = " ".join(str(err).split())[:200]
            raise ModelError(f"{path} is not an ONNX graph in one file that can be run: {reason}") from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or "float" not in inputs[0].type:
            raise ModelError(f"{path} must take one image of float32, it takes {len(inputs)} inputs")
        self._input = inputs[0].name
        _, self.channels, *sides = inputs[0].shape  # names where the graph leaves a size open
        if not isinstance(self.channels, int):
            raise ModelError(f"{path} leaves the number of its channels open")
        self.ndim = len(sides)
        if all(isinstance(n, int) for n in sides):
            self.input_size = tuple(sides)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        _check_numbers(images)
        given = {self._input: images.detach().cpu().contiguous().numpy()}
        made = tuple(torch.from_numpy(out).to(images.device) for out in self._session.run(None, given))
        return made[0] if len(made) == 1 else made


class TorchExportNetwork(ExportedGraph):
    """A graph of `torch.export`, on the CPU.

    Its file may hold pickled objects, which torch runs while it reads: the user must trust it.
    """

    def __init__(self, path: Path, *, trust_code: bool) -> None:
        super().__init__()
        if not trust_code:
            raise ModelError(
                f"reading {path} can run code that is in it; if you trust it, say so with --trust-code"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of its own parts
                program = torch.export.load(path)
                module = program.module()
            image = next(iter(program.graph_signature.user_inputs))
            shape = next(n for n in program.graph.nodes if n.name == image).meta["val"].shape
        except Exception as err:  # noqa: BLE001 - a damaged archive fails anywhere
            reason = " ".join(str(err).split())[:200]
            raise ModelError(f"{path} is not a graph of torch.export: {reason}") from None
        self._run = [module]  # in a list: an exported module refuses eval() and device moves
        self.channels, self.ndim = int(shape[1]), len(shape) - 2
        if all(isinstance(n, int) for n in shape[2:]):
            self.input_size = tuple(shape[2:])

    def forward(self, images: Tensor) -> Any:
        _check_numbers(images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its own parts
            made = self._run[0](images.cpu())
        if isinstance(made, tuple | list):
            return tuple(out.to(images.device) for out in made)
        return made.to(images.device)


def _check_numbers(images: Any) -> None:
    """Raises TypeError for what stands for an image while layers are followed; runtimes crash on it."""
    if not isinstance(images, Tensor):
        raise TypeError("an exported graph is not followed layer by layer")


def load_exported(name: str, path: Path, *, trust_code: bool) -> ExportedGraph:
    """The network in an exported file; `name` is what the card calls its kind. Raises ModelError."""
    if name == EXPORTED[".onnx"]:
        return OnnxNetwork(path)
    return TorchExportNetwork(path, trust_code=trust_code)
