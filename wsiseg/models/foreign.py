"""Networks that are not this program's own: MONAI's, exported graphs, and code that a card names."""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Sequence
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
REFUSALS = (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError)


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
    except (Exception, SystemExit) as err:  # noqa: BLE001 - what others' code ends in is theirs to choose
        raise ModelError(f"network {name!r} cannot be built: {in_short(err)}") from None
    if not isinstance(network, nn.Module):
        raise ModelError(f"network {name!r} gave {type(network).__name__}, not a torch module")
    return network


def _of_monai(name: str) -> Any:
    wanted = name.removeprefix(MONAI)
    if wanted not in MONAI_NETWORKS:
        raise ModelError(f"unknown network {name!r}; of MONAI are known: {', '.join(MONAI_NETWORKS)}")
    return getattr(importlib.import_module("monai.networks.nets"), wanted)


def _of_code(name: str, *, trust_code: bool) -> Any:
    module, _, function = name.removeprefix(CODE).partition(":")
    if not trust_code:
        raise ModelError(
            f"the card runs code of the module {module!r}; if you trust it, say so with --trust-code"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as err:  # noqa: BLE001 - it runs the module
        raise ModelError(
            f"network {name!r} is not found: {in_short(err)}; write python:package.module:function"
        ) from None


def in_short(err: BaseException) -> str:
    """The text of an error in one line of at most 200 letters."""
    return " ".join(str(err).split())[:200] or type(err).__name__


class ExportedGraph(nn.Module):
    """A network of which only the graph is known."""

    channels: int
    ndim: int

    def __deepcopy__(self, memo: Any) -> ExportedGraph:
        return self  # it holds no state, and its runtime may not be copied

    def _take_shape(self, path: Path, shape: Sequence[Any]) -> None:
        """Keep what the graph says of its input (B, C, *axes). Raises ModelError."""
        if len(shape) < 3 or not isinstance(shape[1], int):
            raise ModelError(
                f"{path} takes {list(shape)}; images of shape (batch, channels, ...) with a fixed number "
                "of channels are supported"
            )
        sides = shape[2:]
        fixed = [n for n in sides if isinstance(n, int)]
        if fixed and len(fixed) < len(sides):
            raise ModelError(f"{path} takes {list(shape)}: some sides are fixed and some are open")
        self.channels, self.ndim = shape[1], len(sides)
        if fixed:
            self.input_size = tuple(fixed)


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
        options.log_severity_level = 3  # its warnings are not for users
        # A graph can name files for its weights, which no hash on the card covers. They are looked for
        # in a folder in which there are none.
        key = "session.model_external_initializers_file_folder_path"
        with tempfile.TemporaryDirectory() as nowhere:
            options.add_session_config_entry(key, nowhere)
            try:
                self._session = runtime.InferenceSession(
                    path.read_bytes(), options, providers=["CPUExecutionProvider"]
                )
            except OSError as err:
                raise ModelError(f"cannot read {path}: {err.strerror}") from None
            except Exception as err:  # noqa: BLE001 - the classes of its errors are not public
                raise ModelError(
                    f"{path} is not an ONNX graph in one file that can be run: {in_short(err)}"
                ) from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            kinds = ", ".join(i.type for i in inputs)
            raise ModelError(f"{path} must take one image of float32, tensor(float); it takes {kinds}")
        self._input = inputs[0].name
        self._take_shape(path, inputs[0].shape)  # names where the graph leaves a size open

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
        torchs_own = logging.getLogger("torch.export")
        torchs_own.disabled = True  # it logs a traceback before it raises
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of its own parts
                program = torch.export.load(path)
                module = program.module()
            image = next(iter(program.graph_signature.user_inputs))
            shape = next(n for n in program.graph.nodes if n.name == image).meta["val"].shape
        except Exception as err:  # noqa: BLE001 - a damaged archive fails anywhere
            raise ModelError(f"{path} is not a graph of torch.export: {in_short(err)}") from None
        finally:
            torchs_own.disabled = False
        self._run = [module]  # in a list: an exported module refuses eval() and device moves
        self._take_shape(path, shape)

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
