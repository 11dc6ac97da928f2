"""The picture of a volume that a person can judge: three slices, image above, mask below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from wsiseg.geometry import Geometry
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
from wsiseg.planes import VIEWS, Read, View, slice_at, usual_window

Gray = NDArray[np.uint8]
Paint = Callable[[Rgb, NDArray[np.uint8]], Rgb]
"""A slice of the image (y, x, 3) with the values (y, x) of the same slice upon it."""


def gray(slices: Sequence[NDArray[Any]]) -> list[Gray]:
    """Intensities as 0..255, cut off as `usual_window` says."""
    low, high = usual_window(slices)
    width = max(high - low, 1e-6)
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
