"""What the viewer shows of a folder of results: its cases, their classes, layers and places of doubt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations import open_truth
from wsiseg.batch.discovery import MARKS, is_result
from wsiseg.batch.outcome import read_outcome
from wsiseg.classes import MaskClass
from wsiseg.config import DRAWN, AnnotationRules
from wsiseg.errors import IncompleteStore, UsageError
from wsiseg.names import SUFFIX, case_name
from wsiseg.report import Report
from wsiseg.sources import Source, open_source
from wsiseg.sources.omezarr import open_multiscale
from wsiseg.store import CaseStore, open_store
from wsiseg.viewer.tiles import ImageLayer, IndexLayer, Layer, TruthLevels, top_level

UNSURE_PLACES = 50
"""Of a case, the least sure first."""
UNSURE_CELLS = 24
"""Cells of the coarsest confidence to a place of doubt, a side."""


@dataclass(frozen=True)
class Places:
    """Where to look for what belongs to the results: slides (of stores without an image), annotations."""

    images: Path | None = None
    truth: Path | None = None
    rules: AnnotationRules = DRAWN
    """How annotations that are drawn marks are read."""


class Case:
    """A finished result as the viewer shows it. Raises IncompleteStore, UsageError for a volume."""

    def __init__(self, path: Path, *, name: str, places: Places) -> None:
        self.name = name
        self.store: CaseStore = open_store(path)
        if self.store.plan.axes != "yx":
            raise UsageError(f"{path} is a volume; the viewer shows slides: open its NIfTI file elsewhere")
        self._places = places

    @property
    def classes(self) -> tuple[MaskClass, ...]:
        """Of the mask."""
        return self.store.plan.classes

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels (y, x) of the mask."""
        return self.store.plan.shape

    @cached_property
    def report(self) -> Report | None:
        """What the run said, if it still lies beside the store."""
        found = read_outcome(self.store.path.parent, self.store.path.name.removesuffix(SUFFIX))
        return found if isinstance(found, Report) else None

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Layers by name: mask, and image, confidence, truth where there are any."""
        layers: dict[str, Layer] = {"mask": IndexLayer(_levels(self.store.mask))}
        image = self._image()
        if image is not None:
            layers["image"] = ImageLayer(image, shape=self.shape)
        if self.store.plan.confidence:
            layers["confidence"] = IndexLayer(_levels(self.store.confidence), outside=0)
        truth = _paired(self._places.truth, self.store.path)
        if truth is not None:
            labels = open_truth(
                truth,
                geometry=self.store.geometry,
                classes=self.classes,
                rules=self._places.rules,
                slide=_paired(self._places.images, self.store.path),
            )
            layers["truth"] = IndexLayer(TruthLevels(labels))
        return layers

    def _image(self) -> Source | None:
        if self.store.plan.image_shape is not None:
            return open_multiscale(self.store.path)
        found = _paired(self._places.images, self.store.path)
        return None if found is None else open_source(found, mpp=self.store.plan.spacing[0])

    def at(self, row: int, column: int) -> dict[str, Any]:
        """Class and confidence at a pixel, and where it lies in µm."""
        plan = self.store.plan
        if not (0 <= row < self.shape[0] and 0 <= column < self.shape[1]):
            return {}
        value = int(np.asarray(self.store.mask()[row, column]))
        sure = self.store.confidence()
        name = next((c.name for c in self.classes if c.index == value), "no class")
        return {
            "index": value,
            "name": name,
            "um": [(row + 0.5) * plan.spacing[0], (column + 0.5) * plan.spacing[1]],
            "confidence": None if sure is None else int(np.asarray(sure[row, column])) / 255,
        }

    @cached_property
    def unsure(self) -> list[dict[str, float]]:
        """Places (level-0 pixels: x, y, width, height) where the network was least sure, in that order."""
        if not self.store.plan.confidence:
            return []
        levels = _levels(self.store.confidence)
        step = 2 ** (len(levels) - 1)
        cells = np.asarray(levels[-1][:])
        return [
            {"x": x * step, "y": y * step, "width": w * step, "height": h * step, "confidence": sure}
            for sure, y, x, h, w in least_sure(cells)
        ][:UNSURE_PLACES]

    def facts(self) -> dict[str, Any]:
        """Everything that a page needs to show the case."""
        plan, report = self.store.plan, self.report
        areas = {area.index: area for area in report.classes} if report else {}
        scores = report.scores if report else None
        return {
            "name": self.name,
            "height": self.shape[0],
            "width": self.shape[1],
            "um": list(plan.spacing),
            "levels": top_level(self.shape),
            "layers": sorted(self.layers),
            "model": report.model["name"] if report else None,
            "mean_iou": scores.mean_iou if scores else None,
            "classes": [
                {
                    "index": c.index,
                    "name": c.name,
                    "color": list(c.color),
                    "share": areas[c.index].share if c.index in areas else None,
                    "area_mm2": areas[c.index].area_mm2 if c.index in areas else None,
                }
                for c in self.classes
            ],
            "unsure": self.unsure,
        }


def least_sure(cells: NDArray[np.uint8]) -> list[tuple[float, int, int, int, int]]:
    """Squares of a confidence (y, x) by their mean, lowest first: mean 0..1, y, x, height, width.

    Squares in which less than a quarter was decided by the network (0: glass, void) are left out.
    """
    found = []
    for y in range(0, cells.shape[0], UNSURE_CELLS):
        for x in range(0, cells.shape[1], UNSURE_CELLS):
            part = cells[y : y + UNSURE_CELLS, x : x + UNSURE_CELLS]
            decided = part[part > 0]
            if 4 * decided.size >= part.size:
                found.append((float(decided.mean()) / 255, y, x, *part.shape))
    return sorted(found)


def _levels(level: Any) -> list[Any]:
    """All levels of a pyramid of a store, from `store.mask` or `store.confidence`."""
    found = [level(0)]
    while True:
        try:
            found.append(level(len(found)))
        except FileNotFoundError:
            return found


def _paired(place: Path | None, store: Path) -> Path | None:
    """What is named itself, or the file of a folder that has the name of a store's case."""
    if place is None or not place.is_dir() or place.suffix == ".zarr":
        return place
    own = store.name.removesuffix(SUFFIX)
    marks = {f"{own}{suffix}" for suffix in MARKS} - {store.name}
    return next(
        (p for p in _inside(place) if p.name in marks or (p.suffix != ".zarr" and case_name(p) == own)), None
    )


def find(path: Path, *, places: Places) -> dict[str, Case]:
    """Finished results by name: the store at `path`, or those in the folder.

    Raises UsageError where there is none, IncompleteStore for one store that is not finished.
    """
    if is_result(path):
        name = path.name.removesuffix(SUFFIX)
        return {name: Case(path, name=name, places=places)}
    found: dict[str, Case] = {}
    for store in _stores(path):
        name = store.relative_to(path).as_posix().removesuffix(SUFFIX)
        try:
            found[name] = Case(store, name=name, places=places)
        except (IncompleteStore, UsageError):
            continue
    if not found:
        raise UsageError(f"{path} has no finished results of slides; segment into it first")
    return found


def _stores(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is neither a result (.ome.zarr) nor a folder of results")
    return (entry for entry in _inside(folder) if is_result(entry))


def _inside(folder: Path) -> Iterator[Path]:
    """Files and .zarr folders below a folder, in the order of their names."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.suffix == ".zarr" or entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.is_symlink():
            yield from _inside(entry)
