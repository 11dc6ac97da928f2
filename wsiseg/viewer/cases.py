"""What the viewer shows of a folder of results: its cases, their classes, layers and places of doubt."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations import open_truth
from wsiseg.batch.discovery import is_result
from wsiseg.classes import MaskClass
from wsiseg.errors import IncompleteStore, UsageError
from wsiseg.names import SUFFIX
from wsiseg.report import Report
from wsiseg.reviews.corrections import Corrections
from wsiseg.sources import Source, open_source
from wsiseg.sources.omezarr import open_multiscale
from wsiseg.store import CaseStore, open_store
from wsiseg.viewer.loose import LooseCase
from wsiseg.viewer.places import Places, class_facts, inside, layer_names, paired, report_of
from wsiseg.viewer.reviews import verdicts
from wsiseg.viewer.tiles import ImageLayer, IndexLayer, Layer, TruthLevels, top_level
from wsiseg.viewer.volumes import UNSURE_PLACES, VolumeCase

UNSURE_CELLS = 24
"""Cells of the coarsest confidence to a place of doubt, a side."""


class Case:
    """The finished result of a slide as the viewer shows it."""

    def __init__(self, store: CaseStore, *, name: str, places: Places) -> None:
        self.name = name
        self.store = store
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
        return report_of(self.store.path)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Layers by name: mask, and image, confidence, truth where there are any."""
        layers: dict[str, Layer] = {"mask": IndexLayer(_levels(self.store.mask))}
        image = self._image()
        if image is not None:
            layers["image"] = ImageLayer(image, shape=self.shape)
        if self.store.plan.confidence:
            layers["confidence"] = IndexLayer(_levels(self.store.confidence), outside=0)
        truth = paired(self._places.truth, self.store.path)
        if truth is not None:
            labels = open_truth(
                truth,
                geometry=self.store.geometry,
                classes=self.classes,
                rules=self._places.rules,
                slide=paired(self._places.images, self.store.path),
            )
            layers["truth"] = IndexLayer(TruthLevels(labels))
        return layers

    def _image(self) -> Source | None:
        if self.store.plan.image_shape is not None:
            return open_multiscale(self.store.path)
        found = paired(self._places.images, self.store.path)
        return None if found is None else open_source(found, mpp=self.store.plan.spacing[0])

    @cached_property
    def corrections(self) -> Corrections:
        """What reviewers say of it."""
        return Corrections(self.store, model=self.report.model["name"] if self.report else None)

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

    def summary(self) -> dict[str, Any]:
        """What the list of cases shows."""
        scores = self.report.scores if self.report else None
        return {
            "name": self.name,
            "kind": "slide",
            "height": self.shape[0],
            "width": self.shape[1],
            "levels": top_level(self.shape),
            "layers": layer_names(self.store, self._places),
            "mean_iou": scores.mean_iou if scores else None,
            "verdicts": verdicts(self.corrections),
        }

    def facts(self) -> dict[str, Any]:
        """Everything that a page needs to show the case."""
        return self.summary() | {
            "um": list(self.store.plan.spacing),
            "model": self.report.model["name"] if self.report else None,
            "classes": class_facts(self.classes, self.report),
            "unsure": self.unsure,
        }


SlideCase = Case | LooseCase
AnyCase = SlideCase | VolumeCase


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


def find(path: Path, *, places: Places) -> dict[str, AnyCase]:
    """Finished results by name: the store at `path`, or those in the folder.

    Raises UsageError where there is none, IncompleteStore for one store that is not finished.
    """
    if is_result(path):
        name = path.name.removesuffix(SUFFIX)
        return {name: open_case(path, name=name, places=places)}
    found: dict[str, AnyCase] = {}
    for store in _stores(path):
        name = store.relative_to(path).as_posix().removesuffix(SUFFIX)
        try:
            found[name] = open_case(store, name=name, places=places)
        except IncompleteStore:
            continue
    if not found:
        raise UsageError(f"{path} has no finished results; segment into it first")
    return found


def open_case(path: Path, *, name: str, places: Places) -> AnyCase:
    """The slide or the volume in a store. Raises IncompleteStore."""
    store: CaseStore = open_store(path)
    kind = VolumeCase if store.plan.axes == "zyx" else Case
    return kind(store, name=name, places=places)


def _stores(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is neither a result (.ome.zarr) nor a folder of results; of a slide name a --mask too"
        )
    return (entry for entry in inside(folder) if is_result(entry))
