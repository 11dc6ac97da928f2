"""The state of a training on disk: whole or not at all, and never taken up by another run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wsiseg.errors import ConfigMismatch, StoreError
from wsiseg.files import writing

State = dict[str, Any]
SHOWN = 60
"""Characters of a differing value that a message shows."""


def save_state(path: Path, state: State) -> None:
    """Write plain values and tensors so that they are there whole or not at all. Raises StoreError."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)


def load_state(path: Path, *, identity: Mapping[str, Any], device: torch.device) -> State | None:
    """What a training left, None where there is nothing.

    Raises StoreError for a file that is no such state, ConfigMismatch where it is another training's.
    """
    if not path.is_file():
        return None
    try:
        state: State = torch.load(path, map_location=device, weights_only=True)
        recorded = state["identity"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError):
        raise StoreError(f"{path} is not the state of a training; delete it to begin anew") from None
    difference = first_difference(recorded, identity)
    if difference is not None:
        raise ConfigMismatch(
            f"{path} was begun with another run file or other data: {difference}; delete it to begin anew, "
            "or go on with what it was begun with"
        )
    return state


def first_difference(before: Any, now: Any, *, name: str = "") -> str | None:
    """The first setting that differs, with both values, or None."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(k for k in now if k not in before)]:
            below = f"{name}.{key}".lstrip(".")
            if key not in before or key not in now:
                return f"{below} is only in one of both"
            found = first_difference(before[key], now[key], name=below)
            if found is not None:
                return found
        return None
    return None if before == now else f"{name} was {str(before)[:SHOWN]} and is now {str(now)[:SHOWN]}"
