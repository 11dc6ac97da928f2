"""Weights as safetensors; original checkpoints are recognised by their keys and renamed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsiseg.errors import ModelError
from wsiseg.models.card import sha256_of

# Original name -> ours, applied one after the other to the start or inside of each key.
_ESP_RENAMES = (
    (r"\.c1\.conv\.", ".reduce."),
    (r"\.d1\.conv\.", ".branches.0."),
    (r"\.d2\.conv\.", ".branches.1."),
    (r"\.d4\.conv\.", ".branches.2."),
    (r"\.d8\.conv\.", ".branches.3."),
    (r"\.d16\.conv\.", ".branches.4."),
    (r"\.bn\.bn\.", ".tail.norm."),
    (r"\.bn\.act\.", ".tail.act."),
)
_ENCODER_RENAMES = (
    (r"^encoder\.level1\.conv\.", "encoder.stem.conv."),
    (r"^encoder\.level1\.bn\.", "encoder.stem.tail.norm."),
    (r"^encoder\.level1\.act\.", "encoder.stem.tail.act."),
    (r"^encoder\.b([123])\.bn\.", r"encoder.fuse\1.norm."),
    (r"^encoder\.b([123])\.act\.", r"encoder.fuse\1.act."),
    (r"^encoder\.level2_0\.(bn|act)\.", r"encoder.down1.tail.\1."),
    (r"^encoder\.level3_0\.(bn|act)\.", r"encoder.down2.tail.\1."),
    (r"^encoder\.level2_0\.", "encoder.down1."),
    (r"^encoder\.level3_0\.", "encoder.down2."),
    (r"^encoder\.level2\.", "encoder.stage1."),
    (r"^encoder\.level3\.", "encoder.stage2."),
    (r"^encoder\.classifier\.conv\.", "head."),
    (r"\.tail\.bn\.", ".tail.norm."),
)
_DECODER_RENAMES = (
    (r"^br\.", "norm_eighth."),
    (r"^up_l3\.0\.", "up_eighth."),
    (r"^level3_C\.conv\.", "project_quarter."),
    (r"^combine_l2_l3\.0\.bn\.", "fuse_quarter.norm."),
    (r"^combine_l2_l3\.0\.act\.", "fuse_quarter.act."),
    (r"^combine_l2_l3\.1\.", "mix_quarter."),
    (r"^up_l2\.0\.", "up_quarter."),
    (r"^up_l2\.1\.bn\.", "act_half.norm."),
    (r"^up_l2\.1\.act\.", "act_half.act."),
    (r"^conv\.conv\.", "mix_half.conv."),
    (r"^conv\.bn\.", "mix_half.tail.norm."),
    (r"^conv\.act\.", "mix_half.tail.act."),
    (r"^classifier\.", "up_half."),
)


@dataclass(frozen=True)
class Recognised:
    """An original checkpoint in this program's terms."""

    network: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]


def save_weights(network: nn.Module, path: Path) -> str:
    """Write a network's weights as safetensors; returns the file's sha256."""
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(state, path)
    path.chmod(0o644)  # safetensors leaves files that only their owner may read
    return sha256_of(path)


def load_weights(network: nn.Module, path: Path, *, sha256: str) -> None:
    """Fill a network from safetensors. Raises ModelError if the file is not the card's or does not fit."""
    if not path.is_file():
        raise ModelError(f"the weights {path} that the card names are missing")
    found = sha256_of(path)
    if found != sha256:
        raise ModelError(
            f"the weights {path} have sha256 {found[:12]}..., the card says {sha256[:12]}...; "
            "they are not the file that the card describes"
        )
    try:
        state = load_file(path)
    except SafetensorError as err:
        raise ModelError(f"{path} is not a safetensors file: {err}") from None
    fill(network, state, name=str(path))


def fill(network: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Load a state strictly; batch counters may be absent. Raises ModelError with the first difference."""
    own = network.state_dict()
    for key, tensor in own.items():
        if key not in state:
            if key.endswith("num_batches_tracked"):
                continue
            raise ModelError(
                f"{name} does not fit the network: it lacks {key!r} of shape {tuple(tensor.shape)}"
            )
        if state[key].shape != tensor.shape:
            raise ModelError(
                f"{name} does not fit the network: {key!r} has shape {tuple(state[key].shape)}, "
                f"the network needs {tuple(tensor.shape)}"
            )
    unknown = next((key for key in state if key not in own), None)
    if unknown is not None:
        raise ModelError(f"{name} does not fit the network: it holds {unknown!r}, which the network lacks")
    network.load_state_dict(dict(state), strict=False)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a torch checkpoint, on the CPU; no code in the file is run. Raises ModelError."""
    if not path.is_file():
        raise ModelError(f"no such checkpoint: {path}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError):
        raise ModelError(
            f"{path} is not a checkpoint that loads without running code: it is damaged, no torch file, "
            "or holds more than tensors"
        ) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} does not hold a mapping of names to tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({m.group(1) for key in state if (m := pattern.match(key))})


def recognise(state: Mapping[str, Tensor], *, name: str) -> Recognised:
    """Which published network a checkpoint belongs to, with its tensors renamed.

    The keys are those of the original ESPNet repository: a full network (variant A or B, told by
    the channels that join at half resolution) or an encoder alone. Raises ModelError if neither.
    """
    full = "encoder.classifier.conv.weight" in state
    if full:
        original = dict(state)
    elif "classifier.conv.weight" in state and "level2_0.c1.conv.weight" in state:
        original = {f"encoder.{key}": value for key, value in state.items()}
    else:
        raise ModelError(
            f"{name} is not a checkpoint of a known network; its first key is {next(iter(state))!r}"
        )
    stem = original.get("encoder.level1.conv.weight")
    if stem is None or stem.ndim != 4:
        raise ModelError(f"{name} looks like ESPNet but lacks 'encoder.level1.conv.weight' of 4 axes")
    classes, channels = original["encoder.classifier.conv.weight"].shape[0], stem.shape[1]
    arguments: dict[str, Any] = {
        "classes": classes,
        "channels": channels,
        "p": _count(original, "encoder.level2."),
        "q": _count(original, "encoder.level3."),
        "variant": "C",
    }
    if full:
        join = original.get("conv.conv.weight")
        if join is None or join.ndim != 4:
            raise ModelError(f"{name} looks like ESPNet but lacks 'conv.conv.weight' of 4 axes")
        skip = join.shape[1] - classes
        arguments["variant"] = {16: "A", 16 + channels: "B"}.get(skip, f"with {skip} skip channels")
    # The ESP rules first: they free the names .bn. and .act. for the blocks that keep them.
    renames = _ESP_RENAMES + _ENCODER_RENAMES + _DECODER_RENAMES
    return Recognised("espnet", arguments, {_rename(k, renames): v for k, v in original.items()})
