"""A slide with a mask that is no result of this program: what other programs made, shown in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wsiseg.annotations import Labels, open_truth
from wsiseg.errors import UsageError
from wsiseg.models.zoo import DEFAULT_MODELS, load_card
from wsiseg.names import case_name
from wsiseg.reviews.corrections import Corrections
from wsiseg.sources import Source, open_source
from wsiseg.viewer.places import Places, class_facts
from wsiseg.viewer.tiles import ImageLayer, IndexLayer, Layer, TruthLevels, top_level


@dataclass(frozen=True)
class LooseMask:
    """A mask of a slide: its classes are those of `model`; `mpp` (µm) where the slide does not say it."""

    path: Path
    model: str | None = None
    mpp: float | None = None


class LooseCase:
    """A slide and class indices on its grid; without a store there is no confidence and no review."""

    def __init__(self, slide: Path, mask: LooseMask, *, places: Places) -> None:
        """Raises WsisegError where either cannot be read, or they are not of one size."""
        self.name = case_name(slide)
        self._slide, self._places = slide, places
        self._card = load_card(mask.model or DEFAULT_MODELS["yx"])
        self._source: Source = open_source(slide, mpp=mask.mpp)
        self._geometry = self._source.geometry
        if self._geometry.axes != "yx":
            raise UsageError(f"{slide} is a volume; a loose mask is shown on a slide")
        self._mask = self._labels(mask.path)

    def _labels(self, path: Path) -> Labels:
        return open_truth(
            path,
            geometry=self._geometry,
            classes=self._card.classes,
            rules=self._places.rules,
            slide=self._slide,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels (y, x) of the slide."""
        return self._geometry.shape

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Layers by name."""
        layers: dict[str, Layer] = {
            "image": ImageLayer(self._source, shape=self.shape),
            "mask": IndexLayer(TruthLevels(self._mask)),
        }
        if self._places.truth is not None:
            layers["truth"] = IndexLayer(TruthLevels(self._labels(self._places.truth)))
        return layers

    @property
    def corrections(self) -> Corrections:
        """Raises UsageError: reviews lie beside results."""
        raise UsageError("reviews lie beside results (.ome.zarr); this mask is none")

    def at(self, row: int, column: int) -> dict[str, Any]:
        """Class at a pixel, and where it lies in µm."""
        if not (0 <= row < self.shape[0] and 0 <= column < self.shape[1]):
            return {}
        value = int(self._mask.read((slice(row, row + 1), slice(column, column + 1)))[0, 0])
        name = next((c.name for c in self._card.classes if c.index == value), "no class")
        um = [(n + 0.5) * step for n, step in zip((row, column), self._geometry.spacing, strict=True)]
        return {"index": value, "name": name, "um": um, "confidence": None}

    def summary(self) -> dict[str, Any]:
        """What the list of cases shows."""
        return {
            "name": self.name,
            "kind": "slide",
            "height": self.shape[0],
            "width": self.shape[1],
            "levels": top_level(self.shape),
            "layers": sorted(self.layers),
            "mean_iou": None,
            "verdicts": {},
        }

    def facts(self) -> dict[str, Any]:
        """Everything that a page needs to show the case."""
        return self.summary() | {
            "um": list(self._geometry.spacing),
            "model": None,
            "classes": class_facts(self._card.classes, None),
            "unsure": [],
            "reviewable": False,
        }
