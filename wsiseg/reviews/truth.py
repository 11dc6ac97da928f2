"""Reviews as truth: a reviewer's polygons over annotations, and how far reviewers agree."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wsiseg.annotations import Indices, Labels, open_truth
from wsiseg.classes import VOID
from wsiseg.comparing import confusion
from wsiseg.errors import AnnotationError
from wsiseg.geometry import Region
from wsiseg.metrics import ConfusionMatrix, score
from wsiseg.reviews.corrections import Corrections, Verdict
from wsiseg.store import CaseStore


class Agreement(BaseModel):
    """How far two reviewers agree on the pixels that both have marked."""

    model_config = ConfigDict(frozen=True)

    reviewers: tuple[str, str]
    pixels: int = Field(description="that both have marked")
    same_share: float | None = Field(description="of these, given the same class by both, 0..1")
    kappa: float | None = Field(description="Cohen 1960: 1 agreement, 0 that of chance; None if undefined")
    iou: dict[str, float | None] = Field(description="by class; None where neither has marked it")


class ReviewReport(BaseModel):
    """What a reviewer says of a mask, and how far the other reviewers agree among each other."""

    model_config = ConfigDict(frozen=True)

    reviewer: str
    verdict: Verdict
    comment: str
    polygons: int
    of_this_mask: bool = Field(description="False where the mask was made anew, with other settings, since")
    agreement: tuple[Agreement, ...]


class CorrectedLabels:
    """Class indices of `drawn` where it states any, elsewhere those of `base`."""

    def __init__(self, drawn: Labels, base: Labels | None) -> None:
        self._drawn, self._base = drawn, base
        self.shape = drawn.shape

    def read(self, region: Region) -> Indices:
        drawn = self._drawn.read(region)
        if self._base is None:
            return drawn
        return np.where(drawn == VOID, self._base.read(region), drawn)


class Reviewed:
    """The reviews of a finished slide."""

    def __init__(self, store: CaseStore) -> None:
        self._store = store
        self._corrections = Corrections(store)

    def truth(self, initials: str, *, base: Labels | None) -> Labels:
        """A reviewer's polygons over `base`; without it nothing else is stated. Raises AnnotationError."""
        return CorrectedLabels(self._drawn(initials), base)

    def report(self, initials: str) -> ReviewReport:
        """What a reviewer says, and how far all who drew agree. Raises AnnotationError."""
        layer = self._corrections.layer(initials)
        return ReviewReport(
            reviewer=initials,
            verdict=layer.about.verdict,
            comment=layer.about.comment,
            polygons=len(layer.features),
            of_this_mask=layer.about.plan == self._store.plan.identity,
            agreement=self.agreement(),
        )

    def agreement(self) -> tuple[Agreement, ...]:
        """Of every two reviewers who have drawn anything. Raises AnnotationError."""
        layers = self._corrections.layers()
        drawn = {initials: self._drawn(initials) for initials, layer in layers.items() if layer.features}
        classes = self._store.plan.classes
        found = []
        for one, other in combinations(drawn, 2):
            counts = confusion(drawn[one], drawn[other], num_classes=len(classes))
            scores = score(counts, classes)
            found.append(
                Agreement(
                    reviewers=(one, other),
                    pixels=scores.counted_pixels,
                    same_share=scores.pixel_accuracy,
                    kappa=kappa(counts),
                    iou={c.name: c.iou for c in scores.classes},
                )
            )
        return tuple(found)

    def _drawn(self, initials: str) -> Labels:
        path = self._corrections.path(initials)
        if not self._corrections.layer(initials).features:
            known = ", ".join(self._corrections.reviewers()) or "nobody"
            raise AnnotationError(
                f"{initials} has drawn nothing on {self._store.path}; it has layers of {known}"
            )
        plan = self._store.plan
        return open_truth(path, geometry=self._store.geometry, classes=plan.classes)


def kappa(matrix: ConfusionMatrix) -> float | None:
    """Cohen's kappa (1960) of two raters' counts; None where chance alone would have them agree in all.

    >>> kappa(ConfusionMatrix(np.array([[20, 5], [10, 15]])))
    0.4
    """
    total = int(matrix.counts.sum())
    if not total:
        return None
    by_chance = float(matrix.counts.sum(axis=0) @ matrix.counts.sum(axis=1)) / total**2
    if by_chance == 1:
        return None
    return round((float(np.trace(matrix.counts)) / total - by_chance) / (1 - by_chance), 6)
