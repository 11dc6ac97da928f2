"""Groups of classes: regions made of several classes, like the whole tumour of several tissues."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wsiseg.classes import VOID, MaskClass


class ClassGroup(BaseModel):
    """A region made of several classes; groups may overlap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="name as shown")
    indices: tuple[int, ...] = Field(description="values in the mask that make up the region")

    @field_validator("indices")
    @classmethod
    def _some_classes_once(cls, indices: tuple[int, ...]) -> tuple[int, ...]:
        if not indices:
            raise ValueError("a group needs at least one class")
        if len(set(indices)) != len(indices):
            raise ValueError(f"a class is named twice in {indices}")
        if wrong := [index for index in indices if not 0 <= index < VOID]:
            raise ValueError(f"{wrong[0]} cannot be a class: they are numbered 0 to {VOID - 1}")
        return indices


def _brats(*, whole: tuple[int, ...], core: tuple[int, ...], enhancing: int) -> tuple[ClassGroup, ...]:
    return (
        ClassGroup(name="whole tumour", indices=whole),
        ClassGroup(name="tumour core", indices=core),
        ClassGroup(name="enhancing tumour", indices=(enhancing,)),
    )


BRATS_GROUPS: dict[str, tuple[ClassGroup, ...]] = {
    "brats-3": _brats(whole=(1, 2, 3), core=(1, 3), enhancing=3),
    "brats-4": _brats(whole=(1, 2, 3, 4), core=(1, 3, 4), enhancing=4),
}
"""The three regions that BraTS scores, by the label of the enhancing tumour.

"brats-3" (2023 and later): 1 necrotic core, 2 oedema, 3 enhancing. "brats-4" (before): 1 necrosis,
2 oedema, 3 non-enhancing core, 4 enhancing. From 2017 on label 3 does not occur in the latter, and
1 covers both kinds of core, so one definition serves all of those years. Nothing in a file says which
numbering it has.
"""


def check_groups(groups: Sequence[ClassGroup], classes: Sequence[MaskClass]) -> None:
    """Raises ValueError where a group has a class that is not among `classes`, or a name is used twice."""
    known = {c.index for c in classes}
    for group in groups:
        if unknown := [index for index in group.indices if index not in known]:
            raise ValueError(
                f"group {group.name!r} has class {unknown[0]}, which is not among the classes "
                f"{', '.join(map(str, sorted(known)))}"
            )
    names = [group.name for group in groups]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two groups are named {twice[0]!r}")
