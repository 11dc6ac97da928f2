"""What a network says of whole windows, gathered to a table and a map of the case."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.store import CaseStore

NAME = "diagnosis"


@dataclass(frozen=True)
class Diagnosis:
    """Probabilities of every window that was computed, on the grid of the windows' cores."""

    names: tuple[str, ...]
    probabilities: NDArray[np.float32]  # (D, *grid), NaN where no window was computed
    cores: dict[tuple[int, ...], tuple[tuple[int, int], ...]]
    """By place on the grid: what a window stands for, start and stop per axis, level-0 pixels."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each probability over the windows."""
        return tuple(float(p[~np.isnan(p)].mean()) for p in self.probabilities)

    @property
    def highest(self) -> tuple[float, ...]:
        """Largest probability of each diagnosis in any window."""
        return tuple(float(p[~np.isnan(p)].max()) for p in self.probabilities)

    def table(self, *, axes: str) -> bytes:
        """One row a window as CSV: its place on level 0, and its probabilities."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*(f"{axis}_{end}_px" for axis in axes for end in ("start", "stop")), *self.names])
        for index, core in sorted(self.cores.items()):
            place: tuple[Any, ...] = (slice(None), *index)
            values = self.probabilities[place]
            writer.writerow([*(n for part in core for n in part), *(f"{v:.6f}" for v in values)])
        return text.getvalue().encode()


def gather(store: CaseStore, names: tuple[str, ...]) -> Diagnosis | None:
    """The diagnoses in the ledger of a store; None if there are none.

    A window that was computed again after an interruption says the same again, and counts once.
    """
    if not names:
        return None
    plan = store.plan
    windows: list[dict[str, Any]] = [w for entry in store.entries() for w in entry.get("windows", ())]
    if not windows:
        return None
    model_grid, core = plan.execution["model_grid"], plan.execution["core"]
    grid = tuple(-(-n // c) for n, c in zip(model_grid, core, strict=True))
    values = np.full((len(names), *grid), np.nan, np.float32)
    cores = {}
    for window in windows:
        index = tuple(window["index"])
        values[(slice(None), *index)] = window[NAME]
        cores[index] = tuple(
            (start * n // m, stop * n // m)
            for (start, stop), n, m in zip(window["core"], plan.shape, model_grid, strict=True)
        )
    return Diagnosis(names, values, cores)
