"""The pictures of a finished case: its overlay, and the maps of what was said of whole windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations import Labels
from wsiseg.diagnosis import gather
from wsiseg.exports import beside, confidence_picture, overlay_path
from wsiseg.files import write_whole, writing
from wsiseg.geometry import Geometry, Region
from wsiseg.orthogonal import draw_orthogonal, draw_orthogonal_confidence
from wsiseg.overlay import Caption, draw_confidence, draw_maps, draw_overlay
from wsiseg.planes import busiest
from wsiseg.prepare import Job, coarse_plan
from wsiseg.report import ClassArea, DiagnosisReport
from wsiseg.resample import sample
from wsiseg.sources import Source
from wsiseg.sources.omezarr import open_multiscale
from wsiseg.sources.resampled import at_level, choose_level
from wsiseg.store import CaseStore

PICTURE_PX = 1200


def draw_case(job: Job, store: CaseStore, sizes: Sequence[ClassArea]) -> None:
    """Write the pictures of a finished case; `sizes` are those of its classes. Raises StoreError."""
    caption = Caption(
        title=_title(job),
        classes=store.plan.classes,
        background=job.card.background,
        geometry=store.geometry,
    )
    if store.plan.axes == "yx":
        _draw_slide(caption, job, store)
    else:
        _draw_volume(caption, job, store, sizes_ml=[c.volume_ml or 0.0 for c in sizes])


def _draw_slide(caption: Caption, job: Job, store: CaseStore) -> None:
    grid = _picture_grid(store.geometry)
    level = 0
    while all(n >> (level + 1) >= g for n, g in zip(store.plan.shape, grid.shape, strict=True)):
        level += 1

    def on_grid(array: Any) -> NDArray[np.uint8]:
        values = np.asarray(array[:])
        return sample(values, grid.whole, shape=grid.shape, from_shape=values.shape)

    image = _thumbnail(_stored_image(job, store), grid)
    draw_overlay(
        overlay_path(job.request),
        caption,
        image=image,
        mask=on_grid(store.mask(level)),
        truth=None if job.truth is None else _coarse_truth(job.truth, grid),
    )
    if (confidence := store.confidence(level)) is not None:
        draw_confidence(confidence_picture(job.request), caption, image=image, confidence=on_grid(confidence))


def _draw_volume(caption: Caption, job: Job, store: CaseStore, *, sizes_ml: Sequence[float]) -> None:
    def read(region: Region) -> NDArray[Any]:
        return np.asarray(job.source.read(region).values[0])

    mask = _reader(store.mask())
    places = busiest(mask, store.plan.shape, background=caption.background)
    draw_orthogonal(
        overlay_path(job.request),
        caption,
        places=places,
        image=read,
        mask=mask,
        truth=None if job.truth is None else job.truth.read,
        sizes_ml=sizes_ml,
    )
    if (confidence := store.confidence()) is not None:
        path = confidence_picture(job.request)
        draw_orthogonal_confidence(path, caption, places=places, image=read, confidence=_reader(confidence))


def _reader(array: Any) -> Callable[[Region], NDArray[np.uint8]]:
    """Reads regions of an array that lies in a store."""
    return lambda region: np.asarray(array[region])


def draw_diagnosis(job: Job, store: CaseStore) -> DiagnosisReport | None:
    """Write table and picture of what the network said of whole windows. Raises StoreError."""
    said = gather(store, job.card.diagnoses)
    if said is None:
        return None
    table, picture = (beside(job.request, f"diagnosis.{suffix}") for suffix in ("csv", "png"))
    with writing(table):
        write_whole(table, said.table(axes=store.plan.axes))
    draw_maps(
        picture,
        title=_title(job),
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


def _title(job: Job) -> str:
    return f"{job.request.case} - {job.card.name}"


def _picture_grid(geometry: Geometry) -> Geometry:
    """A grid of at most PICTURE_PX pixels a side over the same extent."""
    factor = max(1.0, max(geometry.shape) / PICTURE_PX)
    return geometry if factor == 1.0 else geometry.at_spacing([s * factor for s in geometry.spacing])


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
