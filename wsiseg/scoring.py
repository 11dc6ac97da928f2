"""Scores of a mask against truth, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from wsiseg.annotations import Labels, label_volume, open_truth
from wsiseg.annotations.labels import IndexLabels, check_size, decoded, open_index_image
from wsiseg.classes import VOID, MaskClass
from wsiseg.config import AnnotationRules, SegmentConfig, make_rules
from wsiseg.copies import Cache
from wsiseg.errors import AnnotationError, UsageError
from wsiseg.files import to_json, write_whole, writing
from wsiseg.geometry import Geometry, Region
from wsiseg.groups import ClassGroup
from wsiseg.metrics import ConfusionMatrix, Scores, score
from wsiseg.models.card import ModelCard
from wsiseg.models.zoo import DEFAULT_MODELS, load_card
from wsiseg.objects import to_path
from wsiseg.prepare import Job
from wsiseg.reliability import SURE, Calibration, Reliability
from wsiseg.sources.base import Array
from wsiseg.sources.native import Native
from wsiseg.sources.volumes import open_volume
from wsiseg.store import CaseStore
from wsiseg.volume_scores import VolumeScores, volume_scores
from wsiseg.windows import WindowPlan

SCORE_BLOCK_PX = 1 << 22
"""Pixels that are compared at a time, whatever the number of axes."""


def blocks(shape: tuple[int, ...]) -> Iterator[Region]:
    """Regions that partition a grid: memory does not grow with its size."""
    ndim = len(shape)
    side = int(SCORE_BLOCK_PX ** (1 / ndim))
    plan = WindowPlan(shape=shape, core=(side,) * ndim, halo=(0,) * ndim)
    return (window.core for window in plan.windows())


def confusion(prediction: Labels, truth: Labels, *, num_classes: int) -> ConfusionMatrix:
    """Confusion of two label grids of one shape, block by block."""
    total = ConfusionMatrix.empty(num_classes)
    for block in blocks(truth.shape):
        total += ConfusionMatrix.of(
            truth=truth.read(block), prediction=prediction.read(block), num_classes=num_classes
        )
    return total


def calibration(
    confidence: Array, prediction: Labels, truth: Labels, *, background: int | None = None
) -> Calibration:
    """How far the confidence (*grid) uint8 of a prediction can be trusted, block by block.

    Of pixels that truth states and a network decided; what both call background does not count: there is
    much of it, and it is easy.
    """
    pixels, right = np.zeros((2, SURE + 1), np.int64)
    for block in blocks(truth.shape):
        sure = decoded(confidence, block, name="the confidence of the prediction")
        stated, predicted = truth.read(block), prediction.read(block)
        counted = (sure > 0) & (stated != VOID) & (predicted != VOID)
        if background is not None:
            counted &= (stated != background) | (predicted != background)
        pixels += np.bincount(sure[counted], minlength=SURE + 1)
        right += np.bincount(sure[counted & (stated == predicted)], minlength=SURE + 1)
    values = np.arange(SURE + 1) / SURE
    return Reliability.of(values, pixels=pixels, right=right).table


def store_labels(store: CaseStore) -> IndexLabels:
    """The mask of a store as labels."""
    plan = store.plan
    return IndexLabels(
        cast("Array", store.mask()), classes=plan.classes, name=str(store.path), shape=plan.shape
    )


class Evaluation(Scores):
    """Scores of a mask; for volumes with distances and volumes of classes and groups.

    With `calibration` where a store says how sure the network was.
    """

    volume_scores: VolumeScores | None = None
    calibration: Calibration | None = None

    @property
    def plain(self) -> Scores:
        """What masks of slides and of volumes have alike."""
        return Scores(**{name: getattr(self, name) for name in Scores.model_fields})


@dataclass(frozen=True)
class Prediction:
    """A mask to be scored, and what is known of it. `geometry` is in pixels unless `sized`."""

    labels: Labels
    classes: tuple[MaskClass, ...]
    geometry: Geometry
    native: Native | None = None
    groups: tuple[ClassGroup, ...] = ()
    background: int | None = None
    confidence: Array | None = None
    sized: bool = True

    def against(self, truth: Labels) -> Evaluation:
        """Scores against truth on the same grid; those of volumes where voxels have a size in mm."""
        scores = score(confusion(self.labels, truth, num_classes=len(self.classes)), self.classes)
        volumes = trusted = None
        if self.geometry.axes == "zyx" and self.geometry.unit == "millimeter":
            volumes = volume_scores(
                truth.read(self.geometry.whole),
                self.labels.read(self.geometry.whole),
                classes=self.classes,
                groups=self.groups,
                spacing_mm=self.geometry.spacing,
                background=self.background,
            )
        if self.confidence is not None:
            trusted = calibration(self.confidence, self.labels, truth, background=self.background)
        return Evaluation(**dict(scores), volume_scores=volumes, calibration=trusted)


def score_case(job: Job, store: CaseStore, truth: Labels) -> Evaluation:
    """Scores of a finished case against truth."""
    return _of_store(store, job.card).against(truth)


def evaluate(
    prediction: str | Path,
    truth: str | Path,
    *,
    out: str | Path | None = None,
    model: str | Path | None = None,
    input: str | Path | None = None,
    **rules: Any,
) -> Evaluation:
    """Scores of a prediction (a store of this program, a class-index image or volume) against truth.

    `truth` is a class-index image or volume, OME-Zarr labels or a file of drawn marks on the same grid.
    `rules` (the fields of AnnotationRules) say how marks are read, and `input` names the slide that they were
    drawn on where they count from its bounds or from the centre of the glass. The classes are those of the
    store; for a plain file those of `model`, by default the shipped one.
    Groups of classes are those of `model`. With `out` the scores are also written there as JSON.
    Raises WsisegError.
    """
    asked = make_rules(rules)
    cache = Cache.of(SegmentConfig())
    with ExitStack() as copies:
        path, marks = (copies.enter_context(cache.copy(to_path(p))) for p in (prediction, truth))
        slide = copies.enter_context(cache.copy(to_path(input))) if input else None
        if slide is not None and not slide.exists():
            raise UsageError(f"--input {input} is not there")
        made = _scores(path, marks, model, rules=asked, slide=slide)
    if out is not None:
        target = to_path(out)
        with writing(target):
            write_whole(target, to_json(made.model_dump(mode="json")))
    return made


def _scores(
    path: Path, truth: Path, model: str | Path | None, *, rules: AnnotationRules, slide: Path | None
) -> Evaluation:
    if not path.exists():
        raise AnnotationError(f"no such prediction: {path}")
    if path.is_dir():
        given = _of_store(CaseStore.open_complete(path), load_card(model) if model else None)
    else:
        given = _of_file(path, model)
    marks = open_truth(
        truth,
        geometry=given.geometry,
        classes=given.classes,
        native=given.native,
        rules=rules,
        slide=slide,
        sized=given.sized,
    )
    check_size(marks.shape, geometry=given.geometry, name=str(truth))
    return given.against(marks)


def _of_store(store: CaseStore, card: ModelCard | None) -> Prediction:
    # A store knows its classes; of a model that is not named, the class that is called so is the background.
    background = next((c.index for c in store.plan.classes if c.name == "background"), None)
    return Prediction(
        store_labels(store),
        store.plan.classes,
        store.geometry,
        groups=card.groups if card else (),
        background=card.background if card else background,
        confidence=cast("Array | None", store.confidence()),
    )


def _of_file(path: Path, model: str | Path | None) -> Prediction:
    volume = open_volume(path)
    card = load_card(model or DEFAULT_MODELS["yx" if volume is None else "zyx"])
    if volume is not None:
        labels = label_volume(volume, path, classes=card.classes)
        return Prediction(labels, card.classes, volume.geometry, volume.native, card.groups, card.background)
    image = open_index_image(path, classes=card.classes)
    # Only the grid is compared: a plain picture has no pixel size.
    axes = "yx" if len(image.shape) == 2 else "zyx"
    grid = Geometry(axes=axes, shape=image.shape, spacing=(1.0,) * len(axes), unit="micrometer")
    return Prediction(image, card.classes, grid, sized=False)
