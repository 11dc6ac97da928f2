"""From the names in an original checkpoint to those of this program."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from wsiseg.errors import ModelError
from wsiseg.models.card import Preprocessing

Renames = tuple[tuple[str, str], ...]
"""Regular expressions and what takes their place, applied one after the other to each key."""


@dataclass(frozen=True)
class Recognised:
    """An original checkpoint in this program's terms."""

    network: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    preprocessing: Preprocessing
    """As the original code prepares its images."""


class Family(Protocol):
    """A module of this package: the checkpoints of one published network."""

    def matches(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the keys are those of the family's network."""
        ...

    def read(self, state: Mapping[str, Tensor], *, name: str) -> Recognised:
        """The checkpoint in this program's terms. Raises ModelError where its sizes cannot be told."""
        ...


def shape_of(state: Mapping[str, Tensor], key: str, *, axes: int, name: str) -> tuple[int, ...]:
    """The shape of a tensor that tells an argument. Raises ModelError where there is none."""
    tensor = state.get(key)
    if tensor is None or tensor.ndim != axes:
        raise ModelError(f"{name} lacks {key!r} of {axes} axes, which tells what it was built with")
    return tuple(tensor.shape)


def renamed(state: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """The tensors under their new names."""
    return {rename(key, renames): value for key, value in state.items()}


def rename(key: str, renames: Renames) -> str:
    """A key after all rules."""
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow a prefix."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({m.group(1) for key in state if (m := pattern.match(key))})
