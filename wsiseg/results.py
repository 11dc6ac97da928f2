"""After the mask: report and picture of a case, and scores against truth."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from wsiseg.annotations import Labels, open_truth
from wsiseg.annotations.labels import IndexLabels, check_size, open_index_image
from wsiseg.classes import MaskClass
from wsiseg.diagnosis import gather
from wsiseg.errors import AnnotationError
from wsiseg.export.nifti import write_nifti
from wsiseg.files import fingerprint, to_json, write_whole, writing
from wsiseg.geometry import Geometry, Region
from wsiseg.metrics import ConfusionMatrix, Scores, score
from wsiseg.models.card import ModelCard
from wsiseg.models.registry import DEFAULT_MODELS, load_card
from wsiseg.orthogonal import draw_orthogonal
from wsiseg.overlay import draw_maps, draw_overlay
from wsiseg.prepare import Job, Request, coarse_plan, estimated_bytes
from wsiseg.report import DiagnosisReport, Report, Stopwatch, VoidReport, WorkReport, class_areas, versions
from wsiseg.resample import sample
from wsiseg.sources import Source
from wsiseg.sources.base import Array
from wsiseg.sources.omezarr import open_multiscale
from wsiseg.sources.resampled import at_level, choose_level
from wsiseg.sources.volume import VolumeSource
from wsiseg.store import CaseStore
from wsiseg.volume_scores import VolumeScores, volume_scores
from wsiseg.windows import WindowPlan

logger = logging.getLogger(__name__)

SCORE_BLOCK_PX = 2048
PICTURE_PX = 1200


def beside(request: Request, name: str) -> Path:
    """Where a file of a case lies, beside its store."""
    return request.out / f"{request.case}.{name}"


def report_path(request: Request) -> Path:
    """Where the report of a case lies."""
    return beside(request, "report.json")


def overlay_path(request: Request) -> Path:
    """Where the picture of a case lies."""
    return beside(request, "overlay.png")


def remove_stale(request: Request) -> None:
    """Remove what lies beside a result that is about to be begun anew."""
    for name in ("report.json", "overlay.png", "diagnosis.csv", "diagnosis.png", "mask.nii.gz"):
        path = beside(request, name)
        with writing(path):
            path.unlink(missing_ok=True)


def void_places(void: NDArray[np.bool_], *, top: int) -> list[list[int]]:
    """Bounding boxes [y0, y1, x0, x1] of connected pixels of some rows that begin at row `top`."""
    if not void.any():
        return []
    labelled, _ = ndimage.label(void)
    boxes = ndimage.find_objects(labelled)
    tops = (top, *(0,) * (void.ndim - 1))
    return [
        [n + t for part, t in zip(box, tops, strict=True) for n in (part.start, part.stop)] for box in boxes
    ]


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


def finished_report(job: Job, store: CaseStore, watch: Stopwatch) -> Report:
    """The report of a finished case: as it is, or anew where annotations differ or a file is gone."""
    path = report_path(job.request)
    given = job.request.annotations
    if path.is_file() and overlay_path(job.request).is_file():
        try:
            report = Report.model_validate_json(path.read_bytes())
        except ValidationError:
            logger.warning("%s is damaged and is written again", path)
        else:
            if given is None or (report.annotations or {}).get("file") == fingerprint(given):
                return report.model_copy(update={"status": "already complete"})
    return make_report(job, store, watch, status="already complete")


def make_report(job: Job, store: CaseStore, watch: Stopwatch, *, status: Any) -> Report:
    """Score, draw and write the report of a finished case."""
    request, plan = job.request, store.plan
    scores = volumetric = None
    if job.truth is not None:
        with watch.stage("evaluate"):
            predicted = store_labels(store)
            matrix = confusion(predicted, job.truth, num_classes=len(plan.classes))
            scores = score(matrix, plan.classes)
            if plan.axes == "zyx":
                volumetric = score_volume(predicted, job.truth, job.card, geometry=store.geometry)
    entries = store.entries()
    counts: Counter[int] = Counter()
    for entry in entries:
        counts.update({int(value): n for value, n in entry["counts"].items()})
    sizes = class_areas(counts, plan.classes, geometry=store.geometry)
    with watch.stage("overlay"):
        if plan.axes == "yx":
            _draw(job, store, job.truth)
        else:
            _draw_volume(job, store, [c.volume_ml or 0.0 for c in sizes])
        diagnosis = _diagnosis(job, store)
    with watch.stage("export"):
        nifti = _write_nifti(job, store)
    total = int(np.prod(plan.shape))
    unreadable = sum(entry["unreadable"] for entry in entries)
    report = Report(
        case=request.case,
        status=status,
        store=store.path,
        overlay=overlay_path(request),
        report=report_path(request),
        input={
            "name": request.input.name,
            **plan.inputs["input"],
            "format": job.source.format,
            "shape": list(plan.shape),
            "spacing": list(plan.spacing),
            "unit": plan.unit,
        },
        model={
            "name": job.card.name,
            "weights_sha256": job.card.sha256,
            "identity": job.card.identity,
            "notice": job.card.notice,
            "limits": list(job.card.limits),
        },
        execution=plan.execution,
        work=_work(entries),
        settings={**job.config.model_dump(mode="json"), "region": plan.inputs["region"]},
        versions=versions(),
        nifti=nifti,
        mask_shape=plan.shape,
        tissue_share=(store.completion() or {}).get("tissue_share"),
        classes=sizes,
        void=VoidReport(
            unreadable_pixels=unreadable,
            unreadable_share=unreadable / total,
            places=tuple(tuple(place) for entry in entries for place in entry["places"]),
            outside_region_pixels=sum(entry["outside_region"] for entry in entries),
        ),
        diagnosis=diagnosis,
        scores=scores,
        volume_scores=volumetric,
        annotations={"name": request.annotations.name, "file": fingerprint(request.annotations)}
        if request.annotations
        else None,
        seconds=watch.rounded(),
        bytes={"estimated": estimated_bytes(job), "store": _size(store.path)},
        remarks=_remarks(job, store, unreadable=unreadable, total=total),
    )
    with writing(report.report):
        write_whole(report.report, to_json(report.model_dump(mode="json")))
    return report


def _diagnosis(job: Job, store: CaseStore) -> DiagnosisReport | None:
    """Table and picture of what the network said of whole windows."""
    said = gather(store, job.card.diagnoses)
    if said is None:
        return None
    table, picture = (beside(job.request, f"diagnosis.{suffix}") for suffix in ("csv", "png"))
    with writing(table):
        write_whole(table, said.table(axes=store.plan.axes))
    draw_maps(
        picture,
        title=f"{job.request.case} - {job.card.name}",
        image=_thumbnail(_stored_image(job, store), _picture_grid(store.geometry)),
        maps=dict(zip(said.names, said.probabilities, strict=True)),
        covered=_covered(store),
    )
    return DiagnosisReport(
        names=said.names,
        windows=len(said.cores),
        mean=said.mean,
        highest=said.highest,
        table=table,
        picture=picture,
    )


def _covered(store: CaseStore) -> tuple[float, ...]:
    """How far the grid of windows reaches, as a multiple of the image's sides (at least 1)."""
    core, size = store.plan.execution["core"], store.plan.execution["model_grid"]
    return tuple(-(-n // c) * c / n for n, c in zip(size, core, strict=True))


def _work(entries: Sequence[dict[str, Any]]) -> WorkReport:
    computed, repeated = (sum(entry.get(name, 0) for entry in entries) for name in ("computed", "repeated"))
    once = computed - repeated
    return WorkReport(
        computed_pixels=computed, repeated_pixels=repeated, repeated_share=repeated / once if once else 0.0
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _remarks(job: Job, store: CaseStore, *, unreadable: int, total: int) -> tuple[str, ...]:
    """What a user should know about this mask, in sentences."""
    remarks = []
    execution = store.plan.execution
    if job.choice.remark:
        remarks.append(job.choice.remark)
    if (store.completion() or {}).get("tissue_share") == 0.0:
        remarks.append("no tissue was found: the whole mask is background")
    if unreadable:
        remarks.append(
            f"{100 * unreadable / total:.2g} % of the pixels could not be decoded "
            "and are void (255) in the mask"
        )
    if job.card.spacing is None:
        remarks.append("the model states no pixel size: the image was used as it is")
    if job.region is not None:
        outside = sum(entry["outside_region"] for entry in store.entries())
        remarks.append(
            f"{100 * outside / total:.3g} % of the slide lies outside the region and is void (255)"
        )
    if job.card.spacing is not None and job.card.spacing.assumed:
        remarks.append("the pixel size of the model's training data was assumed, not stated")
    windowed = execution["executor"] == "windowed"
    if windowed and not job.config.exact and job.card.windows.halo is None:
        used, exact = max(execution["halo"]), job.card.windows.exact_halo
        remarks.append(
            "the model's halo was never measured, so the exact one was used"
            if used == exact
            else f"a halo of {used} pixels was used, never measured for this model; --exact takes {exact}"
        )
    if "reason" in execution:
        remarks.append(f"windows were used instead of one exact pass: {execution['reason']}")
    return tuple(remarks)


def _picture_grid(geometry: Geometry) -> Geometry:
    """A grid of at most PICTURE_PX pixels a side over the same extent."""
    factor = max(1.0, max(geometry.shape) / PICTURE_PX)
    return geometry if factor == 1.0 else geometry.at_spacing([s * factor for s in geometry.spacing])


def _draw(job: Job, store: CaseStore, truth: Labels | None) -> None:
    grid = _picture_grid(store.geometry)
    level = 0
    while all(n >> (level + 1) >= g for n, g in zip(store.plan.shape, grid.shape, strict=True)):
        level += 1
    mask_level = np.asarray(store.mask(level)[:])
    mask = sample(mask_level, grid.whole, shape=grid.shape, from_shape=mask_level.shape)
    draw_overlay(
        overlay_path(job.request),
        title=f"{job.request.case} - {job.card.name}",
        image=_thumbnail(_stored_image(job, store), grid),
        mask=mask,
        truth=None if truth is None else _coarse_truth(truth, grid),
        classes=store.plan.classes,
        background=job.card.background,
        geometry=store.geometry,
    )


def _write_nifti(job: Job, store: CaseStore) -> Path | None:
    """The mask of a volume on its file's own grid."""
    if not isinstance(job.source, VolumeSource):
        return None
    path = beside(job.request, "mask.nii.gz")
    write_nifti(path, store.mask(), job.source.native)
    return path


def _draw_volume(job: Job, store: CaseStore, sizes_ml: Sequence[float]) -> None:
    mask = store.mask()

    def truth(region: Region) -> NDArray[np.uint8]:
        assert job.truth is not None
        return job.truth.read(region)

    draw_orthogonal(
        overlay_path(job.request),
        title=f"{job.request.case} - {job.card.name}",
        image=lambda region: job.source.read(region).values[0],
        mask=lambda region: np.asarray(mask[region]),
        truth=truth if job.truth is not None else None,
        classes=store.plan.classes,
        sizes_ml=sizes_ml,
        background=job.card.background,
        geometry=store.geometry,
    )


def _stored_image(job: Job, store: CaseStore) -> Source:
    """The image of a case; a stored one has the pyramid that a file may lack."""
    return open_multiscale(store.path) if store.plan.image_shape else job.source


def _thumbnail(source: Source, grid: Geometry) -> NDArray[np.uint8]:
    """The image (y, x, 3) on a coarse grid, read in pieces."""
    spacing = max(grid.spacing)
    choice = choose_level(source, spacing=spacing, allow_upsampling=True)
    coarse = at_level(choice, choice.level)
    picture = np.empty((*choice.geometry.shape, 3), np.uint8)
    for window in coarse_plan(choice).windows():
        picture[window.core] = np.moveaxis(coarse.read(window.core).values, 0, -1)
    return sample(picture, (*grid.whole, slice(0, 3)), shape=(*grid.shape, 3), from_shape=picture.shape)


def _coarse_truth(truth: Labels, grid: Geometry) -> NDArray[np.uint8]:
    """Truth on a coarse grid, by pixel centres, read in rows of it."""
    out = np.empty(grid.shape, np.uint8)
    for y in range(grid.shape[0]):
        row = (2 * y + 1) * truth.shape[0] // (2 * grid.shape[0])
        line = truth.read((slice(row, row + 1), slice(0, truth.shape[1])))
        out[y] = sample(
            line, (slice(0, 1), slice(0, grid.shape[1])), shape=(1, grid.shape[1]), from_shape=line.shape
        )[0]
    return out
