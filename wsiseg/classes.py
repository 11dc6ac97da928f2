"""Classes of a mask: index, name and colour; and the value that means "no statement"."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

VOID = 255
"""Unreadable or outside the asked-for region in predictions, not labelled in truth; counts nowhere."""

Color = tuple[int, int, int]


class MaskClass(BaseModel):
    """One class of a mask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0, lt=VOID, description="value in the mask")
    name: str = Field(min_length=1, description="name as shown and as matched in annotations")
    color: Color = Field(description="display colour, red, green, blue 0..255")


BREAST8: tuple[MaskClass, ...] = tuple(
    MaskClass(index=index, name=name, color=color)
    for index, (name, color) in enumerate(
        [
            ("background", (255, 255, 255)),
            ("benign epithelium", (130, 0, 130)),
            ("malignant epithelium", (0, 0, 130)),
            ("normal stroma", (255, 150, 255)),
            ("desmoplastic stroma", (150, 150, 255)),
            ("secretion", (0, 255, 0)),
            ("blood", (255, 255, 0)),
            ("necrosis", (255, 0, 0)),
        ]
    )
)
"""The eight breast-biopsy tissue classes with their published palette (Mehta et al., MICCAI 2018)."""


def index_of_name(classes: Sequence[MaskClass], name: str) -> int | None:
    """Index of the class of that name, ignoring case and surrounding space; None if unknown."""
    wanted = name.strip().casefold()
    return next((c.index for c in classes if c.name.casefold() == wanted), None)


def anonymous_classes(count: int) -> tuple[MaskClass, ...]:
    """`count` classes without a meaning, in distinguishable colours."""
    hues = [(37 * i) % 256 for i in range(count)]
    return tuple(
        MaskClass(index=i, name=f"class {i}", color=(h, (h * 5 + 90) % 256, (h * 11 + 170) % 256))
        for i, h in enumerate(hues)
    )
