"""Scores of a mask against truth, block by block."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from wsiseg.annotations import Labels, label_volume, open_truth
from wsiseg.annotations.labels import IndexLabels, check_size, open_index_image
from wsiseg.classes import MaskClass
from wsiseg.comparing import calibration, confusion
from wsiseg.config import AnnotationRules, SegmentConfig, make_rules
from wsiseg.copies import Cache
from wsiseg.errors import AnnotationError, UsageError
from wsiseg.files import to_json, write_whole, writing
from wsiseg.geometry import Geometry
from wsiseg.groups import ClassGroup
from wsiseg.metrics import Scores, score
from wsiseg.models.card import ModelCard
from wsiseg.models.zoo import DEFAULT_MODELS, load_card
from wsiseg.objects import to_path
from wsiseg.prepare import Job
from wsiseg.reliability import Calibration
from wsiseg.reviews.truth import Reviewed, ReviewReport
from wsiseg.sources.base import Array
from wsiseg.sources.native import Native
from wsiseg.sources.volumes import open_volume
from wsiseg.store import CaseStore
from wsiseg.volume_scores import VolumeScores, volume_scores


def store_labels(store: CaseStore) -> IndexLabels:
    """The mask of a store as labels."""
    plan = store.plan
    return IndexLabels(
        cast("Array", store.mask()), classes=plan.classes, name=str(store.path), shape=plan.shape
    )


class Evaluation(Scores):
    """Scores of a mask; for volumes with distances and volumes of classes and groups.

    With `calibration` where a store says how sure the network was, and `review` where truth is what a
    reviewer corrected.
    """

    volume_scores: VolumeScores | None = None
    calibration: Calibration | None = None
    review: ReviewReport | None = None

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
    truth: str | Path | None = None,
    *,
    corrected: str | None = None,
    out: str | Path | None = None,
    model: str | Path | None = None,
    input: str | Path | None = None,
    **rules: Any,
) -> Evaluation:
    """Scores of a prediction (a store of this program, a class-index image or volume) against truth.

    `truth` is a class-index image or volume, OME-Zarr labels or a file of drawn marks on the same grid.
    `rules` (the fields of AnnotationRules) say how marks are read, and `input` names the slide that they were
    drawn on where they count from its bounds or from the centre of the glass. The classes are those of the
    store; for a plain file those of `model`, by default the shipped one. Groups of classes are those of
    `model`. `corrected` are the initials of a reviewer, whose polygons count instead of `truth` where they
    lie; without `truth` nothing else counts. With `out` the scores are also written there as JSON.
    Raises WsisegError.
    """
    asked = make_rules(rules)
    if truth is None and corrected is None:
        raise UsageError("say what the truth is: --truth, --corrected with a reviewer's initials, or both")
    cache = Cache.of(SegmentConfig())
    with ExitStack() as copies:
        path = copies.enter_context(cache.copy(to_path(prediction)))
        marks = None if truth is None else copies.enter_context(cache.copy(to_path(truth)))
        slide = copies.enter_context(cache.copy(to_path(input))) if input else None
        if slide is not None and not slide.exists():
            raise UsageError(f"--input {input} is not there")
        made = _scores(path, marks, model, rules=asked, slide=slide, corrected=corrected)
    if out is not None:
        target = to_path(out)
        with writing(target):
            write_whole(target, to_json(made.model_dump(mode="json")))
    return made


def _scores(
    path: Path,
    truth: Path | None,
    model: str | Path | None,
    *,
    rules: AnnotationRules,
    slide: Path | None,
    corrected: str | None,
) -> Evaluation:
    if not path.exists():
        raise AnnotationError(f"no such prediction: {path}")
    store = CaseStore.open_complete(path) if path.is_dir() else None
    given = _of_store(store, load_card(model) if model else None) if store else _of_file(path, model)
    marks = None
    if truth is not None:
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
    if corrected is None:
        assert marks is not None
        return given.against(marks)
    if store is None or given.geometry.axes != "yx":
        raise UsageError(f"{path} has no reviews: only results of slides (.ome.zarr) have them")
    reviewed = Reviewed(store)
    made = given.against(reviewed.truth(corrected, base=marks))
    return made.model_copy(update={"review": reviewed.report(corrected)})


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
