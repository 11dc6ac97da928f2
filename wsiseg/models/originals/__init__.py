"""Which published network a checkpoint belongs to; one module a family."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsiseg.errors import ModelError
from wsiseg.models.originals import espnet, espnet3d, espnetv2, mrseg, ynet
from wsiseg.models.originals.renaming import Family, Recognised

FAMILIES: tuple[Family, ...] = (espnet, espnet3d, espnetv2, mrseg, ynet)


def recognise(state: Mapping[str, Tensor], *, name: str) -> Recognised:
    """The published network that a checkpoint belongs to, with its tensors renamed. Raises ModelError."""
    for family in FAMILIES:
        if family.matches(state):
            return family.read(state, name=name)
    raise ModelError(f"{name} is not a checkpoint of a known network; its first key is {next(iter(state))!r}")
