"""What decides the bytes of a result: fixed before the first slab, recorded, reused on resume."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

from wsiseg.bounded import LARGEST_RECORD, read_bounded
from wsiseg.classes import MaskClass
from wsiseg.config import SegmentConfig
from wsiseg.errors import IncompleteStore
from wsiseg.geometry import Geometry, Unit

MOST_SLABS = 1 << 20
"""Of a store: the highest slide has a hundredth of that."""


class StorePlan(BaseModel):
    """Everything that decides the bytes of a store; fixed before the first slab."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    axes: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: Unit
    image_shape: tuple[int, ...] | None
    image_spacing: tuple[float, ...] | None
    image_channels: int = 3
    image_dtype: str = "uint8"
    slab_rows: PositiveInt
    chunk: PositiveInt
    classes: tuple[MaskClass, ...]
    inputs: dict[str, Any]
    """Fingerprints and settings that the user chose: input, model, tissue, region."""
    execution: dict[str, Any]
    """What can change a float: device, precision, threads, batch, windows, versions."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        grids = [(self.shape, self.spacing)]
        if self.image_shape is not None:
            grids.append((self.image_shape, self.image_spacing or ()))
        for shape, spacing in grids:
            Geometry(axes=self.axes, shape=shape, spacing=spacing, unit=self.unit)
        if self.slab_rows % self.chunk:
            raise ValueError(f"slab_rows {self.slab_rows} is no multiple of chunk {self.chunk}")
        if self.shape[0] > MOST_SLABS * self.slab_rows:
            raise ValueError(f"shape {self.shape} has more than {MOST_SLABS} slabs")
        return self

    @property
    def identity(self) -> str:
        """Hash of the plan."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Plans that ran out of memory and were left for this one: what was tried, and `why` it was left."""
        return list(self.execution.get("attempts", ()))

    def takes_over(self, begun: StorePlan) -> bool:
        """True if this is what comes after a plan that has run out of memory."""
        before = len(begun.attempts)
        return self.inputs == begun.inputs and self.attempts[:before] == begun.attempts != self.attempts

    @property
    def confidence(self) -> bool:
        """True where the store has a confidence beside its mask."""
        return bool(self.inputs.get("settings", {}).get("confidence"))

    @property
    def image_rows(self) -> int:
        """Rows of the stored image that are written in one piece: about those of a slab."""
        assert self.image_shape is not None
        rows = self.slab_rows * self.image_shape[0] / self.shape[0]
        return max(1, round(rows / self.chunk)) * self.chunk


def plan_of(path: Path) -> StorePlan | None:
    """The plan that a store was begun with, or None. Raises IncompleteStore if it is damaged."""
    file = path / "ledger" / "plan.json"
    if not file.is_file():
        return None
    try:
        return StorePlan.model_validate_json(read_bounded(file, most=LARGEST_RECORD))
    except ValueError:
        raise IncompleteStore(f"the plan in {file} is damaged; use --overwrite to start again") from None


def with_defaults(plan: StorePlan) -> StorePlan:
    """A plan with the defaults of settings that the program which made it did not have."""
    settings = SegmentConfig().model_dump(mode="json") | plan.inputs.get("settings", {})
    return plan.model_copy(update={"inputs": {"temperature": 1.0, **plan.inputs, "settings": settings}})


def difference(recorded: StorePlan, plan: StorePlan) -> str:
    """The first setting in which two plans `with_defaults` differ, in words.

    What the user named comes first, then what was asked for, then what follows from both: the executor
    that was chosen, say, has the name of the one that was asked for.
    """
    for old, new in zip(_by_weight(recorded), _by_weight(plan), strict=True):
        for key in sorted(old.keys() | new.keys(), key=lambda k: (k != "executor", k)):
            if old.get(key) != new.get(key):
                return f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
    raise ValueError("the plans are equal")


def _by_weight(plan: StorePlan) -> list[dict[str, Any]]:
    rest = plan.model_dump(mode="json")
    inputs, execution = rest.pop("inputs"), rest.pop("execution")
    settings = inputs.pop("settings", {})
    card = {"temperature": inputs.pop("temperature", None)}
    return [inputs, settings, card, execution, rest]
