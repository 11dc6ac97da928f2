"""Draws docs/line-buffers.png: what a small network keeps while a band goes through it.

    python docs/line_buffers.py

Everything in the picture comes from the schedule that the program itself would follow, as do the
figures on ESPNet (p = 2, q = 3, 8 classes) that it prints.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Patch, Rectangle
from torch import Tensor, nn

import wsiseg
from wsiseg.execute.schedule import Schedule, make_schedule
from wsiseg.graph.network import NetworkGraph

HEIGHT, BAND, STEP = 40, 4, 4  # rows of the image, rows of a band, the band that is drawn (from 0)
COLORS = {"gone": "#e8e8e8", "kept": "#8ab6e8", "made": "#f2a33a", "to come": "#ffffff"}


class Example(nn.Module):
    """Half resolution, two dilated branches, back up, joined with a projection of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.near = nn.Conv2d(8, 8, 3, padding=1)
        self.far = nn.Conv2d(8, 8, 3, padding=3, dilation=3)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.skip = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        half = self.reduce(image)
        up = self.up(self.near(half) + self.far(half))
        scores: Tensor = self.head(torch.cat([up, self.skip(image)], dim=1))
        return scores


def example() -> Schedule:
    """The schedule of the example for an image of 40 x 40 pixels."""
    return make_schedule(NetworkGraph(Example().eval()), (HEIGHT, HEIGHT), channels=3)


def state(schedule: Schedule, layer: int, row: int) -> str:
    """What has become of a row of a layer when the band that is drawn has gone through."""
    start, stop = schedule.step(STEP, layer, band=BAND)
    if row >= stop:
        return "to come"
    if row >= start:
        return "made"
    return "kept" if row >= start - schedule.holds[layer] else "gone"


def print_figures(*, height: int = 12_000, width: int = 10_000, tile: int = 1024) -> None:
    """What the text says of ESPNet on a slide."""
    graph = NetworkGraph(wsiseg.build_network("espnet", classes=8).eval())
    schedule = make_schedule(graph, (height, width), channels=3)
    kept = sum(hold * schedule.row_elements(i) for i, hold in enumerate(schedule.holds)) * 4
    whole = sum(math.prod(shape) for shape in schedule.shapes) * 4
    field = max(graph.phase_reach(phase, axis=0).width for phase in range(graph.output_stride))
    print(f"all features of {width} x {height} pixels: {whole / 1e9:.0f} GB")
    print(f"rows that are kept: {kept / width / 1000:.1f} KB a column")
    print(
        f"receptive field {field}; a tile of {tile} sees {(tile + field - 1) ** 2 / tile**2:.1f} x its pixels"
    )


def main() -> None:
    """Draw it."""
    print_figures()
    schedule = example()
    layers = schedule.graph.layers
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    for number, layer in enumerate(layers):
        scale = float(schedule.graph.scales[number])
        for row in range(schedule.heights[number]):
            color = COLORS[state(schedule, number, row)]
            axes.add_patch(
                Rectangle((number, row * scale), 0.8, scale, facecolor=color, edgecolor="#777777", lw=0.5)
            )
        note = f"delay {schedule.delays[number]}\nkept {schedule.holds[number]}"
        axes.text(number + 0.4, -0.6, f"{layer.name}\n{note}", ha="center", va="bottom", fontsize=9)
        for source in layer.inputs:
            x = (source + 0.8, number)
            y = [
                schedule.step(STEP, i, band=BAND)[1] * float(schedule.graph.scales[i])
                for i in (source, number)
            ]
            axes.annotate(
                "", (x[1], y[1] - 0.5), (x[0], y[0] - 0.5), arrowprops={"arrowstyle": "->", "lw": 0.8}
            )
    axes.set_xlim(-0.2, len(layers))
    axes.set_ylim(HEIGHT, -5)
    axes.set_xticks([])
    axes.set_yticks(range(0, HEIGHT + 1, BAND))
    axes.set_ylabel("rows of the image")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    names = {
        "gone": "used up",
        "kept": "kept from the bands before",
        "made": "made by this band",
        "to come": "to come",
    }
    handles = [Patch(facecolor=COLORS[k], edgecolor="#777777", label=v) for k, v in names.items()]
    axes.legend(handles=handles, loc="lower center", ncols=4, bbox_to_anchor=(0.5, -0.08), frameon=False)
    figure.savefig(Path(__file__).with_name("line-buffers.png"), dpi=110)


if __name__ == "__main__":
    main()
