"""The picture of a case that a person can judge: tissue, mask, legend, scale bar; truth beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from wsiseg.classes import VOID, Color, MaskClass
from wsiseg.files import write_whole, writing
from wsiseg.geometry import Geometry
from wsiseg.models.card import RESEARCH_USE

Rgb = NDArray[np.uint8]
Indices = NDArray[np.uint8]

OPACITY = 0.45
VOID_COLOR = (128, 128, 128)
CONFIDENCE_COLORS = "viridis"


def palette(classes: Sequence[MaskClass]) -> NDArray[np.uint8]:
    """Colour (256, 3) of every mask value."""
    colors = np.full((256, 3), VOID_COLOR, np.uint8)
    for c in classes:
        colors[c.index] = c.color
    return colors


def blend(image: Rgb, mask: Indices, *, classes: Sequence[MaskClass], background: int | None) -> Rgb:
    """The image (y, x, 3) tinted by the mask (y, x), with outlines; background stays as it is."""
    colors = palette(classes)[mask].astype(np.float32)
    tinted = np.rint((1 - OPACITY) * image + OPACITY * colors).astype(np.uint8)
    if background is not None:
        tinted = np.where((mask == background)[..., None], image, tinted)
    border = np.zeros(mask.shape, bool)
    border[:-1] |= mask[:-1] != mask[1:]
    border[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return np.where(border[..., None], (0.6 * tinted).astype(np.uint8), tinted)


@dataclass(frozen=True)
class Caption:
    """What a picture of a case says beside its pixels."""

    title: str
    classes: Sequence[MaskClass]
    background: int | None
    geometry: Geometry
    """Grid of the mask."""

    def blend(self, image: Rgb, mask: Indices) -> Rgb:
        """The image (y, x, 3) tinted by the mask (y, x)."""
        return blend(image, mask, classes=self.classes, background=self.background)


def scale_bar_um(extent_um: float) -> float:
    """A round length (1, 2 or 5 times a power of ten) of about a fifth of the picture's width."""
    target = extent_um / 5
    power = 10.0 ** math.floor(math.log10(target))
    return max(m * power for m in (1.0, 2.0, 5.0) if m * power <= target)


def draw_overlay(path: Path, caption: Caption, *, image: Rgb, mask: Indices, truth: Indices | None) -> None:
    """Write overlay.png from pictures (y, x[, 3]) of one size over the whole grid. Raises StoreError."""
    panels = {"tissue": image, "mask": caption.blend(image, mask)}
    if truth is not None:
        panels["annotation"] = caption.blend(image, truth)
    figure, _ = _panels(panels, caption.geometry)
    _draw_legend(figure, mask, truth, caption.classes)
    save(figure, path, title=caption.title)


def _panels(panels: Mapping[str, Rgb], geometry: Geometry) -> tuple[Figure, Sequence[Axes]]:
    """Pictures (y, x, 3) of one size side by side, with their names and scale bars."""
    image = next(iter(panels.values()))
    aspect = image.shape[0] / image.shape[1]
    width = 5.0
    height = min(max(width * aspect, 2.2), 14.0)
    figure = Figure(figsize=(width * len(panels), height + 1.7), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, picture) in zip(axes, panels.items(), strict=True):
        axis.imshow(picture, interpolation="nearest" if min(picture.shape[:2]) < 400 else "auto")
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
        draw_scale_bar(axis, picture.shape, extent_um=_extent_um(geometry))
    return figure, axes


def confidence_colors(image: Rgb, confidence: NDArray[np.uint8]) -> Rgb:
    """The confidence (y, x) in colours; where no network decided, the image (y, x, 3) in grey."""
    colors = colormaps[CONFIDENCE_COLORS](confidence, bytes=True)[..., :3]
    gray = image.mean(axis=-1, keepdims=True).astype(np.uint8)
    return np.where((confidence == 0)[..., None], gray, colors).astype(np.uint8)


def finish_confidence(figure: Figure, path: Path, *, title: str, axes: Sequence[Axes]) -> None:
    """Write a picture of a confidence with what its colours mean. Raises StoreError."""
    colors = ScalarMappable(Normalize(0, 1), cmap=CONFIDENCE_COLORS)
    bar = figure.colorbar(colors, ax=axes, label="probability of the mask's class", shrink=0.8)
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel(f"grey: no network decided\n{RESEARCH_USE}", fontsize=8)
    save(figure, path, title=title)


def draw_confidence(path: Path, caption: Caption, *, image: Rgb, confidence: NDArray[np.uint8]) -> None:
    """Write the picture of a confidence (y, x) beside the image (y, x, 3). Raises StoreError."""
    panels = {"tissue": image, "confidence": confidence_colors(image, confidence)}
    figure, axes = _panels(panels, caption.geometry)
    # The legend is a bar on the right, not lines below.
    figure.set_size_inches(figure.get_figwidth() + 1.2, figure.get_figheight() - 0.7)
    finish_confidence(figure, path, title=caption.title, axes=axes)


def save(figure: Figure, path: Path, *, title: str) -> None:
    """Write a figure as PNG, whole or not at all. Raises StoreError."""
    # Fonts lack some signs that file names may have; a box for them is no reason to warn.
    figure.suptitle(title.encode("latin-1", "replace").decode("latin-1"), fontsize=11, parse_math=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(
        buffer, format="png", metadata={"Description": RESEARCH_USE}, pil_kwargs={"compress_level": 4}
    )
    with writing(path):
        write_whole(path, buffer.getvalue())


def draw_maps(
    path: Path,
    *,
    title: str,
    image: Rgb,
    maps: Mapping[str, NDArray[np.float32]],
    covered: tuple[float, ...],
) -> None:
    """Write a picture of maps (*grid) of probabilities, each over the image (y, x, 3). Raises StoreError.

    A map covers `covered` times the image's sides; what is NaN stays as it is.
    """
    height, width = image.shape[:2]
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    size = min(max(3.5 * height / width, 1.8), 8.0)
    figure = Figure(figsize=(3.5 * columns + 0.8, size * rows + 1.0), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for axis, (name, values) in zip(grid.flat, maps.items(), strict=False):
        # Grey, so that every colour in the picture is a probability.
        axis.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
        # Pixel centres have whole numbers here, so the image begins half a pixel before them.
        bottom, right = covered[0] * height - 0.5, covered[1] * width - 0.5
        extent = (-0.5, right, bottom, -0.5)
        drawn = axis.imshow(
            values, extent=extent, vmin=0, vmax=1, cmap="magma", alpha=0.6, interpolation="nearest"
        )
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
        axis.set_title(name, fontsize=10)
    figure.colorbar(drawn, ax=grid, label="probability", shrink=0.8)
    figure.supxlabel(RESEARCH_USE, fontsize=8)
    save(figure, path, title=title)


def _extent_um(geometry: Geometry) -> float:
    return geometry.extent[-1] * (1000.0 if geometry.unit == "millimeter" else 1.0)


def draw_scale_bar(axis: Axes, shape: tuple[int, ...], *, extent_um: float) -> None:
    """A scale bar with its length, in the lower left corner of a picture (y, x[, 3])."""
    height, width = shape[:2]
    length_um = scale_bar_um(extent_um)
    length = length_um / extent_um * width
    thickness = max(1.0, 0.008 * height)
    x, y = 0.04 * width, 0.95 * height
    axis.add_patch(Rectangle((x, y), length, thickness, facecolor="black", edgecolor="white", linewidth=0.7))
    text = f"{length_um:g} µm" if length_um < 1000 else f"{length_um / 1000:g} mm"
    axis.text(
        x + length / 2, y - 0.01 * height, text, ha="center", va="bottom", fontsize=8,
        bbox={"facecolor": "white", "alpha": 0.75, "pad": 1.2, "linewidth": 0},
    )  # fmt: skip


def class_color(c: MaskClass) -> tuple[float, float, float]:
    """The colour of a class as matplotlib takes it."""
    return _mpl(c.color)


def _mpl(color: Color) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def _draw_legend(figure: Figure, mask: Indices, truth: Indices | None, classes: Sequence[MaskClass]) -> None:
    """Every class with its share of the mask; void where there is some."""
    counted = mask[mask != VOID]
    entries = []
    for c in classes:
        share = float((counted == c.index).mean()) if counted.size else 0.0
        label = f"{c.name} {100 * share:.1f} %"
        entries.append(Patch(facecolor=_mpl(c.color), edgecolor="black", linewidth=0.5, label=label))
    if (mask == VOID).any() or (truth is not None and (truth == VOID).any()):
        gray = _mpl(VOID_COLOR)
        entries.append(Patch(facecolor=gray, edgecolor="black", linewidth=0.5, label="no statement"))
    legend = figure.legend(
        handles=entries, loc="outside lower center", ncols=3, fontsize=8, frameon=False, title=RESEARCH_USE
    )
    legend.get_title().set_fontsize(8)
