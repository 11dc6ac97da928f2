"""The course of a training: a table of losses and scores, and the same as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsiseg.classes import MaskClass
from wsiseg.files import write_whole, writing
from wsiseg.metrics import Scores

LOG_EVERY = 20
"""Steps whose losses are averaged in one row."""
Row = dict[str, float]


@dataclass
class History:
    """Mean losses every LOG_EVERY steps, and scores; part of the state that a kill leaves."""

    losses: list[Row] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)
    pending: list[Row] = field(default_factory=list)

    def note(self, step: int, parts: Row, *, rate: float, seconds: float, last: bool) -> None:
        """Take in the losses of a step."""
        self.pending.append({"loss": sum(parts.values()), **(parts if len(parts) > 1 else {})})
        if step % LOG_EVERY and not last:
            return
        means = {name: float(np.mean([row[name] for row in self.pending])) for name in self.pending[0]}
        self.losses.append({"step": step, **means, "learning_rate": rate, "seconds": seconds})
        self.pending.clear()

    def score(self, step: int, scores: Scores, *, figure: float) -> None:
        """Take in the scores of a validation; a class without truth has none."""
        row: Row = {"step": step, "score": figure}
        for c in scores.classes:
            if c.truth_pixels and c.iou is not None and c.dice is not None:
                row |= {f"IoU {c.name}": c.iou, f"Dice {c.name}": c.dice}
        self.scores.append(row)

    def write_tables(self, folder: Path, name: str) -> None:
        """Write losses and scores as CSV. Raises StoreError."""
        with writing(folder):
            write_whole(folder / f"{name}.log.csv", _table(self.losses))
            if self.scores:
                write_whole(folder / f"{name}.validation.csv", _table(self.scores))

    def write(self, folder: Path, name: str, classes: Sequence[MaskClass]) -> None:
        """Write the tables and the picture. Raises StoreError."""
        self.write_tables(folder, name)
        if self.losses:
            with writing(folder):
                write_whole(folder / f"{name}.curves.png", draw(self, title=name, classes=classes))


def _table(rows: Sequence[Row]) -> bytes:
    """Rows as CSV, a column for every name that occurs."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, names, restval="")
    table.writeheader()
    table.writerows({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in rows)
    return stream.getvalue().encode()


def draw(history: History, *, title: str, classes: Sequence[MaskClass]) -> bytes:
    """A PNG of the losses with the learning rate and, where there are scores, the IoU of every class."""
    figure = Figure(figsize=(10, 4) if history.scores else (6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, 2 if history.scores else 1, squeeze=False)[0]
    steps = [row["step"] for row in history.losses]
    names = [n for n in history.losses[0] if n not in ("step", "learning_rate", "seconds")]
    for name in names:
        axes[0].plot(
            steps,
            [row[name] for row in history.losses],
            label=name,
            color="black" if name == "loss" else None,
        )
    axes[0].set(xlabel="step", ylabel="loss", title=title, ylim=(0, None))
    rate = axes[0].twinx()
    rate.plot(steps, [row["learning_rate"] for row in history.losses], ":", color="tab:orange")
    rate.set_ylabel("learning rate (dotted)")
    if len(names) > 1:
        axes[0].legend()
    if history.scores:
        _draw_scores(axes[1], history.scores, classes)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110)
    return stream.getvalue()


def _draw_scores(axis: Any, rows: Sequence[Row], classes: Sequence[MaskClass]) -> None:
    for c in classes:
        found = [(row["step"], row[f"IoU {c.name}"]) for row in rows if f"IoU {c.name}" in row]
        if found:
            # A class that is white in the picture of a mask would not be seen on paper.
            color = [0.85 * v / 255 for v in c.color]
            axis.plot(*zip(*found, strict=True), "o-", markersize=3, color=color, label=c.name)
    axis.plot([r["step"] for r in rows], [r["score"] for r in rows], "k--", linewidth=2, label="score")
    axis.set(xlabel="step", ylabel="IoU on validation", ylim=(0, 1))
    axis.legend(fontsize="small")
