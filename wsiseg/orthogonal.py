"""The picture of a volume that a person can judge: three slices, image above, mask below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from wsiseg.geometry import Geometry, Region
from wsiseg.models.card import RESEARCH_USE
from wsiseg.overlay import (
    Caption,
    Rgb,
    class_color,
    confidence_colors,
    draw_scale_bar,
    finish_confidence,
    save,
)
from wsiseg.windows import slabs

Gray = NDArray[np.uint8]
Read = Callable[[Region], NDArray[Any]]
"""Values of a region (z, y, x)."""
Paint = Callable[[Rgb, NDArray[np.uint8]], Rgb]
"""A slice of the image (y, x, 3) with the values (y, x) of the same slice upon it."""


@dataclass(frozen=True)
class View:
    """How a slice across one axis of a volume (z, y, x; right, anterior, superior) is shown."""

    name: str
    axis: int
    left: str
    right: str


READ_SLICES = 64
"""Of a mask at a time: as many as a chunk of a volume has by default, so that each is decoded once."""

# As radiologists look: the patient's right is on the left, the nose up or to the left.
VIEWS = (View("axial", 0, "R", "L"), View("coronal", 1, "R", "L"), View("sagittal", 2, "A", "P"))


def busiest(mask: Read, shape: tuple[int, ...], *, background: int | None) -> tuple[int, ...]:
    """The slice of each axis with most voxels that are not background; the middle where there are none."""
    counts = [np.zeros(n, np.int64) for n in shape]
    for slab in slabs(shape[0], rows=READ_SLICES):
        marked = mask((slab.rows, slice(0, shape[1]), slice(0, shape[2]))) != (background or 0)
        across = marked.sum(axis=0, dtype=np.int64)  # (y, x)
        counts[0][slab.rows] = marked.sum(axis=(1, 2))
        counts[1] += across.sum(axis=1)
        counts[2] += across.sum(axis=0)
    return tuple(int(c.argmax()) if c.any() else len(c) // 2 for c in counts)


def slice_at(read: Read, shape: tuple[int, ...], view: View, place: int) -> NDArray[Any]:
    """A slice as it is shown: superior or anterior up, the patient's right or the nose left."""
    region = [slice(0, n) for n in shape]
    region[view.axis] = slice(place, place + 1)
    return np.squeeze(read(tuple(region)), axis=view.axis)[::-1, ::-1]


def gray(slices: Sequence[NDArray[Any]]) -> list[Gray]:
    """Intensities as 0..255, cut off at the 1st and 99.5th percentile of what is not 0."""
    values = np.concatenate([s[s != 0].ravel() for s in slices]).astype(np.float32)
    low, high = np.percentile(values, (1, 99.5)) if values.size else (0.0, 1.0)
    width = max(float(high - low), 1e-6)
    return [(np.clip((s.astype(np.float32) - low) / width, 0, 1) * 255).astype(np.uint8) for s in slices]


def draw_orthogonal(
    path: Path,
    caption: Caption,
    *,
    places: Sequence[int],
    image: Read,
    mask: Read,
    truth: Read | None,
    sizes_ml: Sequence[float],
) -> None:
    """Write a picture of a mask on slices at `places`, one an axis; sizes per class. Raises StoreError."""
    rows = {"mask": mask} if truth is None else {"mask": mask, "truth": truth}
    figure, _ = _slices(caption.geometry, places, image, rows, paint=caption.blend)
    handles = [
        Patch(facecolor=class_color(c), edgecolor="black", linewidth=0.5, label=f"{c.name} {ml:.3g} ml")
        for c, ml in zip(caption.classes, sizes_ml, strict=True)
    ]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False, title=RESEARCH_USE
    )
    legend.get_title().set_fontsize(8)
    save(figure, path, title=caption.title)


def draw_orthogonal_confidence(
    path: Path, caption: Caption, *, places: Sequence[int], image: Read, confidence: Read
) -> None:
    """Write a picture of a confidence on the same slices. Raises StoreError."""
    rows = {"confidence": confidence}
    figure, axes = _slices(caption.geometry, places, image, rows, paint=confidence_colors)
    finish_confidence(figure, path, title=caption.title, axes=axes)


def _slices(
    geometry: Geometry, places: Sequence[int], image: Read, rows: Mapping[str, Read], *, paint: Paint
) -> tuple[Figure, Sequence[Axes]]:
    """Three slices of the image, and in each row below it other values painted upon them."""
    names = ["image", *rows]
    figure = Figure(figsize=(11.0, 3.4 * len(names) + 1.2), dpi=120, layout="constrained")
    axes = figure.subplots(len(names), len(VIEWS), squeeze=False)
    grays = gray([slice_at(image, geometry.shape, view, places[view.axis]) for view in VIEWS])
    for column, (view, picture) in enumerate(zip(VIEWS, grays, strict=True)):
        place = places[view.axis]
        rgb = np.repeat(picture[..., None], 3, axis=-1)
        values = [slice_at(read, geometry.shape, view, place).astype(np.uint8) for read in rows.values()]
        for row, shown in enumerate([rgb, *(paint(rgb, own) for own in values)]):
            _show(axes[row, column], shown, view, geometry=geometry)
            axes[row, column].set_title(f"{view.name} {place}, {names[row]}", fontsize=9)
    return figure, axes.ravel().tolist()


def _show(axis: Axes, picture: NDArray[np.uint8], view: View, *, geometry: Geometry) -> None:
    down, across = (n for i, n in enumerate(geometry.spacing) if i != view.axis)
    axis.imshow(picture, aspect=down / across, interpolation="nearest")
    axis.set_axis_off()
    height, width = picture.shape[:2]
    unit = 1000.0 if geometry.unit == "millimeter" else 1.0
    draw_scale_bar(axis, picture.shape, extent_um=width * across * unit)
    for x, text in ((0.02, view.left), (0.98, view.right)):
        axis.text(
            x * width, height / 2, text, color="white", fontsize=8, ha="left" if x < 0.5 else "right",
            bbox={"facecolor": "black", "alpha": 0.5, "pad": 1.0, "linewidth": 0},
        )  # fmt: skip
