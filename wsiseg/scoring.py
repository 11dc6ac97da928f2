"""Scores of a mask against truth, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from wsiseg.annotations import Labels, open_truth
from wsiseg.annotations.labels import IndexLabels, check_size, open_index_image
from wsiseg.classes import MaskClass
from wsiseg.errors import AnnotationError
from wsiseg.files import to_json, write_whole, writing
from wsiseg.geometry import Geometry
from wsiseg.metrics import ConfusionMatrix, Scores, score
from wsiseg.models.card import ModelCard
from wsiseg.models.registry import DEFAULT_MODELS, load_card
from wsiseg.prepare import Job
from wsiseg.sources.base import Array
from wsiseg.store import CaseStore
from wsiseg.volume_scores import VolumeScores, volume_scores
from wsiseg.windows import WindowPlan

SCORE_BLOCK_PX = 2048


def confusion(prediction: Labels, truth: Labels, *, num_classes: int) -> ConfusionMatrix:
    """Confusion of two label grids of one shape, block by block: memory does not grow with the size."""
    total = ConfusionMatrix.empty(num_classes)
    ndim = len(truth.shape)
    plan = WindowPlan(shape=truth.shape, core=(SCORE_BLOCK_PX,) * ndim, halo=(0,) * ndim)
    for window in plan.windows():
        total += ConfusionMatrix.of(
            truth=truth.read(window.core), prediction=prediction.read(window.core), num_classes=num_classes
        )
    return total


def score_case(job: Job, store: CaseStore, truth: Labels) -> tuple[Scores, VolumeScores | None]:
    """Scores of a finished case against truth; those of volumes for volumes only."""
    predicted, classes = store_labels(store), store.plan.classes
    scores = score(confusion(predicted, truth, num_classes=len(classes)), classes)
    if store.plan.axes == "yx":
        return scores, None
    return scores, score_volume(predicted, truth, job.card, geometry=store.geometry)


def score_volume(prediction: Labels, truth: Labels, card: ModelCard, *, geometry: Geometry) -> VolumeScores:
    """Overlap, surface distances and volumes of a model's classes and groups; both volumes are held whole."""
    return volume_scores(
        truth.read(geometry.whole),
        prediction.read(geometry.whole),
        classes=card.classes,
        groups=card.groups,
        spacing_mm=geometry.spacing,
        background=card.background,
    )


def store_labels(store: CaseStore) -> IndexLabels:
    """The mask of a store as labels."""
    plan = store.plan
    return IndexLabels(
        cast("Array", store.mask()), classes=plan.classes, name=str(store.path), shape=plan.shape
    )


def evaluate(
    prediction: str | Path,
    truth: str | Path,
    *,
    out: str | Path | None = None,
    model: str | Path | None = None,
) -> Scores:
    """Scores of a prediction (a store of this program, or a class-index image) against truth.

    `truth` is a class-index image, OME-Zarr labels or QuPath GeoJSON on the same grid. The classes are
    those of the store; for a plain image those of `model`, by default the shipped one. With `out` the
    scores are also written there as JSON. Raises WsisegError.
    """
    path, truth = Path(prediction), Path(truth)
    classes: tuple[MaskClass, ...]
    predicted: Labels
    if not path.exists():
        raise AnnotationError(f"no such prediction: {path}")
    if path.is_dir():
        store = CaseStore.open_complete(path)
        classes, predicted = store.plan.classes, store_labels(store)
    else:
        classes = load_card(model or DEFAULT_MODELS["yx"]).classes
        predicted = open_index_image(path, classes=classes)
    axes = "yx" if len(predicted.shape) == 2 else "zyx"
    # Only the grid is compared: a plain picture has no pixel size.
    grid = Geometry(axes=axes, shape=predicted.shape, spacing=(1.0,) * len(axes), unit="micrometer")
    marks = open_truth(truth, geometry=grid, classes=classes)
    check_size(marks.shape, geometry=grid, name=str(truth))
    scores = score(confusion(predicted, marks, num_classes=len(classes)), classes)
    if out is not None:
        with writing(Path(out)):
            write_whole(Path(out), to_json(scores.model_dump(mode="json")))
    return scores
