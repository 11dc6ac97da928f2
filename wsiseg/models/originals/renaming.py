"""From the names in an original checkpoint to those of this program, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from torch import Tensor

from wsiseg.errors import ModelError
from wsiseg.models.card import Preprocessing

Renames = tuple[tuple[str, str], ...]
"""Regular expressions and what takes their place, applied one after the other to each key.

Outside of their groups the expressions are plain text, so that they can be turned round.
"""


@dataclass(frozen=True)
class Recognised:
    """An original checkpoint in this program's terms."""

    network: str
    arguments: dict[str, Any]
    original: dict[str, Tensor]
    """Tensors under their original names, with the prefix before each that the rules expect."""
    renames: Renames
    preprocessing: Preprocessing
    """As the original code prepares its images."""
    prefix: str = ""
    """What the file itself does not have before its names."""

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors under this program's names."""
        return {rename(key, self.renames): value for key, value in self.original.items()}

    def name_in_file(self, key: str) -> str:
        """What the original file calls, or would call, a tensor of this program's name."""
        names = original_names(key, self.renames)
        places = {place for name in self.original for place in _places(name)}
        tails = {tail for name in self.original for tail in _tails(name)}

        def strangeness(name: str) -> tuple[bool, bool, int, int, str]:
            """Orders names that this file could have by how unlike they are to those that it has."""
            own = [tail in tails for tail in _tails(name)]
            near = sum(place in places for place in _places(name))
            return not all(own), name == key, -near, -sum(own), name

        return min(names & self.original.keys() or names, key=strangeness).removeprefix(self.prefix)


def _places(name: str) -> Iterator[str]:
    """The modules that a tensor lies in, by their dotted names."""
    return accumulate(name.split(".")[:-1], "{}.{}".format)


def _tails(name: str) -> Iterator[str]:
    """The ends of a name, without its numbers: what the same tensors of several layers share."""
    return accumulate(re.sub(r"\d+", "0", name).split(".")[::-1], "{1}.{0}".format)


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


def rename(key: str, renames: Renames) -> str:
    """A key after all rules."""
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def original_names(key: str, renames: Renames) -> set[str]:
    """Every name that the rules turn into `key`."""
    names = {key}
    for pattern, replacement in reversed(renames):
        before = {b for name in names for b in (name, *_turned_back(name, pattern, replacement))}
        names = {b for b in before if re.sub(pattern, replacement, b) in names}
    return names


def _turned_back(name: str, pattern: str, replacement: str) -> Iterator[str]:
    """A name with each of the places turned back that a rule could have made.

    >>> list(_turned_back("stage1.norm.bias", r"^level(\\d)\\.", r"stage\\1."))
    ['level1.norm.bias']
    """
    groups = re.findall(r"\((?:[^()]|\([^()]*\))*\)", pattern)
    text = pattern.removeprefix("^")
    made = re.escape(replacement)
    for number, group in enumerate(groups, 1):
        text = text.replace(group, f"\\{number}", 1)
        made = made.replace(re.escape(f"\\{number}"), f"(?P<g{number}>{group})")
    plain = text.replace(r"\.", ".")
    for match in re.finditer(("^" if pattern.startswith("^") else "") + made, name):
        turned = plain
        for number in range(1, len(groups) + 1):
            turned = turned.replace(f"\\{number}", match[f"g{number}"])
        yield name[: match.start()] + turned + name[match.end() :]


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow a prefix."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({m.group(1) for key in state if (m := pattern.match(key))})
