"""Weights as safetensors, and what a torch checkpoint holds."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsiseg.errors import ModelError
from wsiseg.models.card import sha256_of

STATES = ("state_dict", "model_state_dict", "model")
"""Where training programs keep the tensors of a network."""

# Of torch's unpickler, which stops at what is no tensor, and at instructions that make no sense.
_NO_CHECKPOINT = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError,
    AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip


def save_weights(network: nn.Module, path: Path) -> str:
    """Write a network's weights as safetensors; returns the file's sha256."""
    # Cloned: safetensors refuses weights that a network holds under two names.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(state, partial)
    except SafetensorError as err:
        raise ModelError(f"cannot write {partial}: {err}") from None
    partial.chmod(0o644)  # safetensors leaves files that only their owner may read
    partial.replace(path)
    return sha256_of(path)


def load_weights(network: nn.Module, path: Path, *, sha256: str) -> None:
    """Fill a network from safetensors. Raises ModelError if the file is not the card's or does not fit."""
    check_weights(path, sha256=sha256)
    fill(network, read_safetensors(path), name=str(path))


def check_weights(path: Path, *, sha256: str) -> None:
    """Raises ModelError where a file is not the one that a card describes."""
    if not path.is_file():
        raise ModelError(f"the weights {path} that the card names are missing")
    found = sha256_of(path)
    if found != sha256:
        raise ModelError(
            f"the weights {path} have sha256 {found[:12]}..., the card says {sha256[:12]}...; "
            "they are not the file that the card describes"
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises ModelError."""
    try:
        return load_file(path)
    except SafetensorError as err:
        raise ModelError(f"{path} is not a safetensors file: {err}") from None


def fill(
    network: nn.Module, state: Mapping[str, Tensor], *, name: str, called: Callable[[str], str] = str
) -> None:
    """Load a state strictly; batch counters may be absent. Raises ModelError with the first difference.

    `called` gives the name that the file `name` has for a tensor.
    """
    own = network.state_dict()
    for key, tensor in own.items():
        if key not in state:
            if key.endswith("num_batches_tracked"):
                continue
            raise ModelError(
                f"{name} does not fit the network: it lacks {called(key)!r} of shape {tuple(tensor.shape)}"
            )
        if state[key].shape != tensor.shape:
            raise ModelError(
                f"{name} does not fit the network: {called(key)!r} has shape {tuple(state[key].shape)}, "
                f"the network needs {tuple(tensor.shape)}"
            )
    unknown = next((key for key in state if key not in own), None)
    if unknown is not None:
        raise ModelError(
            f"{name} does not fit the network: it holds {called(unknown)!r}, which the network lacks"
        )
    network.load_state_dict(dict(state), strict=False)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a torch checkpoint, on the CPU; no code in the file is run. Raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path} is no file" if path.exists() else f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of pickles that it refuses next
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _NO_CHECKPOINT:
        raise ModelError(
            f"{path} is not a checkpoint that loads without running code: it is damaged, no torch file, "
            "or holds more than tensors"
        ) from None
    state = loaded
    if isinstance(loaded, Mapping):
        state = next((loaded[name] for name in STATES if name in loaded), loaded)
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise ModelError(
            f"{path} does not hold a mapping of names to tensors, alone or under {', '.join(STATES)}"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}
