"""After the mask: the report of a case, its scores, its picture and what is exported."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.bounded import LARGEST_RECORD, read_bounded
from wsiseg.config import AnnotationRules
from wsiseg.export.numbers import mask_levels, structure_of, structure_rows
from wsiseg.export.tables import write_csv
from wsiseg.exports import (
    confidence_nifti,
    confidence_picture,
    export_nifti,
    overlay_path,
    report_path,
    structure_table,
)
from wsiseg.files import files_below, fingerprint, to_json, write_whole, writing
from wsiseg.models.card import ModelCard
from wsiseg.plan import StorePlan
from wsiseg.prepare import Job, estimated_bytes
from wsiseg.progress import no_progress
from wsiseg.report import (
    ConfidenceReport,
    Report,
    Stopwatch,
    VoidReport,
    WorkReport,
    class_areas,
    mean_confidence,
    versions,
)
from wsiseg.scoring import Evaluation, score_case
from wsiseg.smaller import remark
from wsiseg.sources.identifiers import read_identifiers
from wsiseg.store import CaseStore
from wsiseg.structure import Structure

logger = logging.getLogger(__name__)


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


def finished_report(job: Job, store: CaseStore, watch: Stopwatch) -> Report:
    """The report of a finished case: as it is, or anew where annotations differ or a file is gone."""
    path = report_path(job.request)
    given = job.request.annotations
    pictures = [overlay_path(job.request)]
    if store.plan.confidence:
        pictures.append(confidence_picture(job.request))
    if job.config.structure:
        pictures.append(structure_table(job.request))
    if all(file.is_file() for file in (path, *pictures)):
        try:
            report = Report.model_validate_json(read_bounded(path, most=LARGEST_RECORD))
        except ValueError:
            logger.warning("%s is damaged and is written again", path)
        else:
            same_marks = given is None or report.annotations == _annotations(given, job.config)
            same = (report.identifiers is not None) == job.config.keep_identifiers
            if same_marks and same and (report.structure is not None) >= job.config.structure:
                return report.model_copy(update={"status": "already complete"})
    return make_report(job, store, watch, status="already complete")


def make_report(job: Job, store: CaseStore, watch: Stopwatch, *, status: Any) -> Report:
    """Score, draw and write the report of a finished case."""
    from wsiseg.pictures import draw_case, draw_diagnosis  # Matplotlib: not before the first rows are in

    request, plan, entries = job.request, store.plan, store.entries()
    found = None
    if job.truth is not None:
        with watch.stage("evaluate"):
            found = score_case(job, store, job.truth)
    sums = _confidence_sums(entries)
    sizes = class_areas(_counts(entries), plan.classes, geometry=store.geometry, sums=sums)
    with watch.stage("overlay"):
        draw_case(job, store, sizes)
        diagnosis = draw_diagnosis(job, store)
    with watch.stage("export"):
        nifti, sure = export_nifti(job, store), confidence_nifti(job, store)
    built = None
    if job.config.structure:
        with watch.stage("structure"):
            built = _structure(job, store)
    void = _void(entries, total=math.prod(plan.shape))
    return _written(
        Report(
            case=request.case,
            status=status,
            store=store.path,
            overlay=overlay_path(request),
            report=report_path(request),
            input=_input(job, plan),
            model=_model(job.card),
            execution=plan.execution,
            work=_work(entries),
            settings={**job.config.model_dump(mode="json"), "region": plan.inputs["region"]},
            versions=versions(),
            nifti=nifti,
            mask_shape=plan.shape,
            tissue_share=(store.completion() or {}).get("tissue_share"),
            classes=sizes,
            void=void,
            confidence=_confidence(job, store, sums, nifti=sure, found=found),
            diagnosis=diagnosis,
            structure=built,
            scores=found and found.plain,
            volume_scores=found and found.volume_scores,
            annotations=_annotations(request.annotations, job.config),
            identifiers=read_identifiers(request.input) if job.config.keep_identifiers else None,
            seconds=watch.rounded(),
            bytes={"estimated": estimated_bytes(job), "store": _size(store.path)},
            remarks=_remarks(job, store, void),
        )
    )


def _structure(job: Job, store: CaseStore) -> Structure:
    """How the tissue is built, also as a table beside the store."""
    found = structure_of(
        mask_levels(store), classes=store.plan.classes, geometry=store.geometry, mpp=None, around=None,
        min_um2=None, progress=no_progress,
    )  # fmt: skip
    write_csv(structure_table(job.request), structure_rows(found))
    return found


def _written(report: Report) -> Report:
    with writing(report.report):
        write_whole(report.report, to_json(report.model_dump(mode="json")))
    return report


def _annotations(given: Path | None, rules: AnnotationRules) -> dict[str, Any] | None:
    """What the scores were made with."""
    if given is None:
        return None
    table = rules.class_names
    return {
        "name": given.name,
        "file": fingerprint(given),
        "class_names": fingerprint(table) if table and table.exists() else None,
        **{name: getattr(rules, name) for name in AnnotationRules.model_fields if name != "class_names"},
    }


def _counts(entries: Sequence[dict[str, Any]]) -> Counter[int]:
    """Pixels by mask value."""
    counts: Counter[int] = Counter()
    for entry in entries:
        counts.update({int(value): n for value, n in entry["counts"].items()})
    return counts


def _confidence_sums(entries: Sequence[dict[str, Any]]) -> dict[int, list[int]]:
    """By mask value: pixels that a network decided, and the sum of their confidence."""
    sums: dict[int, list[int]] = {}
    for entry in entries:
        for value, found in entry.get("confidence", {}).get("sums", {}).items():
            before = sums.get(int(value), [0, 0])
            sums[int(value)] = [a + b for a, b in zip(before, found, strict=True)]
    return sums


def _confidence(
    job: Job, store: CaseStore, sums: dict[int, list[int]], *, nifti: Path | None, found: Evaluation | None
) -> ConfidenceReport | None:
    if not store.plan.confidence:
        return None
    # Background is much and easy: with it every case would look sure.
    others = [found for value, found in sums.items() if value != job.card.background]
    total = [sum(column) for column in zip([0, 0], *others, strict=True)]
    return ConfidenceReport(
        pixels=total[0],
        mean=mean_confidence(total),
        picture=confidence_picture(job.request),
        nifti=nifti,
        calibration=found and found.calibration,
    )


def _void(entries: Sequence[dict[str, Any]], *, total: int) -> VoidReport:
    unreadable = sum(entry["unreadable"] for entry in entries)
    return VoidReport(
        unreadable_pixels=unreadable,
        unreadable_share=unreadable / total,
        places=tuple(tuple(place) for entry in entries for place in entry["places"]),
        outside_region_pixels=sum(entry["outside_region"] for entry in entries),
    )


def _input(job: Job, plan: StorePlan) -> dict[str, Any]:
    return {
        "name": job.request.input.name,
        **plan.inputs["input"],
        "format": job.source.format,
        "shape": list(plan.shape),
        "spacing": list(plan.spacing),
        "unit": plan.unit,
    }


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "weights_sha256": card.sha256,
        "identity": card.identity,
        "notice": card.notice,
        "limits": list(card.limits),
    }


def _work(entries: Sequence[dict[str, Any]]) -> WorkReport:
    computed, repeated = (sum(entry.get(name, 0) for entry in entries) for name in ("computed", "repeated"))
    once = computed - repeated
    return WorkReport(
        computed_pixels=computed, repeated_pixels=repeated, repeated_share=repeated / once if once else 0.0
    )


def _size(folder: Path) -> int:
    return sum(num_bytes for _, num_bytes in files_below(folder))


def _remarks(job: Job, store: CaseStore, void: VoidReport) -> tuple[str, ...]:
    """What a user should know about this mask, in sentences."""
    remarks = []
    execution = store.plan.execution
    if job.choice.remark:
        remarks.append(job.choice.remark)
    if (store.completion() or {}).get("tissue_share") == 0.0:
        remarks.append("no tissue was found: the whole mask is background")
    if void.unreadable_pixels:
        remarks.append(
            f"{100 * void.unreadable_share:.2g} % of the pixels could not be decoded "
            "and are void (255) in the mask"
        )
    if job.card.spacing is None:
        remarks.append("the model states no pixel size: the image was used as it is")
    if job.region is not None:
        outside = void.outside_region_pixels / math.prod(store.plan.shape)
        remarks.append(f"{100 * outside:.3g} % of the slide lies outside the region and is void (255)")
    if store.plan.confidence:
        known = "calibration" in job.card.quality
        unknown = "the card states no calibration of the model: its confidence may be too high or too low; "
        remarks.append(
            f"{'' if known else unknown}confidence means nothing on images of a kind that the model never saw"
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
    if store.plan.attempts:
        remarks.append(remark(execution))
    return tuple(remarks)
