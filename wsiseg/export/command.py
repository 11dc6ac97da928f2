"""A finished store as a file for another program: what `wsiseg export` calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict

from wsiseg.classes import index_of_name
from wsiseg.config import SegmentConfig
from wsiseg.copies import Cache
from wsiseg.errors import UsageError
from wsiseg.export.dicomseg import MOST_PIXELS, write_dicom_seg
from wsiseg.export.geojson import Outlines, write_geojson
from wsiseg.export.manifest import write_training_row
from wsiseg.export.nifti import write_nifti
from wsiseg.export.numbers import mask_levels, structure_of, structure_rows
from wsiseg.export.ometiff import write_ome_tiff
from wsiseg.export.png import write_png
from wsiseg.export.tables import class_rows, class_table, write_csv
from wsiseg.files import fingerprint
from wsiseg.models.card import RESEARCH_USE
from wsiseg.objects import to_path
from wsiseg.overlay import palette
from wsiseg.progress import Progress, no_progress
from wsiseg.sources import image_files, open_source
from wsiseg.sources.dicom_headers import reference_headers
from wsiseg.sources.slide import bounds_corner
from wsiseg.sources.volume import VolumeSource
from wsiseg.store import CaseStore, open_store

BACKGROUND = "background"


class Frame(StrEnum):
    """Where (0, 0) of polygons lies: at the corner of level 0, or of the bounds that the slide states."""

    level0 = "level0"
    bounds = "bounds"


class Exported(BaseModel):
    """What was written."""

    model_config = ConfigDict(frozen=True)

    store: str
    to: str
    out: str
    notice: str = RESEARCH_USE
    details: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may be asked of an export; None and False are what is not asked for."""

    tolerance: float | None = None
    min_area: float | None = None
    merge: bool = False
    frame: Frame | None = None
    background: bool = False
    input: Path | None = None
    colors: bool = False
    mpp: float | None = None
    regions: Path | None = None
    structure: bool = False
    around: tuple[str, ...] | None = None
    reviewer: str | None = None
    patient: str | None = None
    split: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Task:
    """One export."""

    store: CaseStore
    out: Path
    settings: Settings
    progress: Progress

    @property
    def levels(self) -> list[Any]:
        """The mask and its coarser levels."""
        return mask_levels(self.store)

    @contextmanager
    def input(self, why: str) -> Iterator[Path]:
        """The file that the mask was made from. Raises UsageError where it is another, or not named."""
        given = self.settings.input
        if given is None:
            raise UsageError(f"{why}; name the slide or volume that the mask was made from with --input")
        with Cache.of(SegmentConfig()).copy(given) as path:
            if not path.exists():
                raise UsageError(f"--input {given} is not there")
            if fingerprint(path, files=image_files(path)) != self.store.plan.inputs.get("input"):
                raise UsageError(f"--input {given} is not the file that {self.store.path} was made from")
            yield path


def export_store(
    store: str | Path,
    *,
    to: str,
    out: str | Path,
    overwrite: bool = False,
    progress: Progress = no_progress,
    **settings: Any,
) -> Exported:
    """Write a finished store as `to` (a key of KINDS) to the file `out`. Raises WsisegError."""
    if to not in KINDS:
        raise UsageError(f"--to {to} is not known; it is one of {', '.join(KINDS)}")
    write, axes, known = KINDS[to]
    asked = Settings(**settings)
    for field in fields(asked):
        if getattr(asked, field.name) not in (None, False) and field.name not in known:
            option = f"--{field.name.replace('_', '-')}"
            raise UsageError(f"{option} says nothing of --to {to}; leave it out")
    path = to_path(out)
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name a file")
    if path.exists() and not overwrite and to not in ADDED_TO:
        raise UsageError(f"{path} is there already; use --overwrite to replace it, or another --out")
    opened = open_store(store)
    if opened.plan.axes not in axes:
        kind = "volume" if opened.plan.axes == "zyx" else "slide"
        raise UsageError(f"{opened.path} is the mask of a {kind}, which --to {to} is not for")
    details = write(Task(opened, path, asked, progress))
    return Exported(store=str(opened.path), to=to, out=str(path), details=details)


def _geojson(task: Task) -> dict[str, Any]:
    asked, plan = task.settings, task.store.plan
    frame, corner = asked.frame or Frame.level0, (0, 0)
    if frame is Frame.bounds:
        with task.input("the bounds of a slide stand in its file") as path:
            corner = bounds_corner(path)
    background = index_of_name(plan.classes, BACKGROUND)
    outlines = Outlines(
        tolerance_um=asked.tolerance or 0.0,
        min_area_um2=asked.min_area or 0.0,
        merge=asked.merge,
        left_out=() if asked.background or background is None else (background,),
        offset_xy=(corner[1], corner[0]),
    )
    about = {
        "case": plan.case,
        "notice": RESEARCH_USE,
        "frame": frame.value,
        "origin_in_level0_px": list(outlines.offset_xy),
        "pixel_size_um": list(plan.spacing[::-1]),
        "tolerance_um": outlines.tolerance_um,
        "min_area_um2": outlines.min_area_um2,
        "cut_into_bands": not asked.merge,
    }
    counts = write_geojson(
        task.out,
        task.store.mask(),
        classes=plan.classes,
        spacing=plan.spacing,
        outlines=outlines,
        about=about,
        progress=task.progress,
    )
    return {**about, "polygons": counts}


def _ome_tiff(task: Task) -> dict[str, Any]:
    plan, levels = task.store.plan, task.levels
    colors = palette(plan.classes) if task.settings.colors else None
    write_ome_tiff(
        task.out,
        levels,
        spacing=plan.spacing,
        name=plan.case,
        identity=plan.identity,
        colors=colors,
        progress=task.progress,
    )
    return {
        "levels": len(levels),
        "shape": list(plan.shape),
        "pixels": "colours" if task.settings.colors else "class indices",
    }


def _png(task: Task) -> dict[str, Any]:
    grid = write_png(
        task.out,
        task.levels,
        geometry=task.store.geometry,
        colors=palette(task.store.plan.classes),
        mpp=task.settings.mpp,
        progress=task.progress,
    )
    return {"shape": list(grid.shape), "pixel_size_um": list(grid.spacing[::-1])}


def _csv(task: Task) -> dict[str, Any]:
    asked, store = task.settings, task.store
    if asked.structure:
        return _structure(task)
    for option, given in (("--around", asked.around), ("--mpp", asked.mpp), ("--min-area", asked.min_area)):
        if given is not None:
            raise UsageError(f"{option} belongs to --structure; leave it out, or ask for the structure")
    rows = class_rows(
        store.mask(),
        classes=store.plan.classes,
        geometry=store.geometry,
        regions=asked.regions,
        progress=task.progress,
    )
    table = class_table(rows, axes=store.plan.axes)
    write_csv(task.out, table)
    return {"areas": table}


def _structure(task: Task) -> dict[str, Any]:
    asked, store = task.settings, task.store
    if store.plan.axes != "yx":
        raise UsageError(f"{store.path} is the mask of a volume; structure numbers are for slides")
    if asked.regions is not None:
        raise UsageError("--regions says nothing of --structure; leave one of them out")
    found = structure_of(
        task.levels,
        classes=store.plan.classes,
        geometry=store.geometry,
        mpp=asked.mpp,
        around=asked.around,
        min_um2=asked.min_area,
        progress=task.progress,
    )
    write_csv(task.out, structure_rows(found))
    return {"structure": found.model_dump(mode="json")}


def _nifti(task: Task) -> dict[str, Any]:
    with task.input("a NIfTI file takes over the orientation of the volume's own file") as path:
        source = open_source(path)
        if not isinstance(source, VolumeSource):
            raise UsageError(f"{path} is no volume; NIfTI is for volumes")
        write_nifti(task.out, task.store.mask(), source.native)
        return {"shape": list(source.native.shape)}


def _dicom_seg(task: Task) -> dict[str, Any]:
    plan = task.store.plan
    if (pixels := math.prod(plan.shape)) > MOST_PIXELS:
        raise UsageError(
            f"the mask has {pixels} pixels and a DICOM segmentation of at most {MOST_PIXELS} is written; "
            "use --to ome-tiff, or nifti for a volume"
        )
    with task.input("a segmentation refers to the images that it is of") as path:
        headers, values = reference_headers(path), np.asarray(task.store.mask()[:])
        source = open_source(path, 1.0 if plan.axes == "yx" else None)
        # Frames (slices, rows, columns): of a slide there is one.
        frames = source.native.to_native(values).T if isinstance(source, VolumeSource) else values[None]
        write_dicom_seg(task.out, frames, headers, classes=plan.classes, identity=plan.identity)
    return {"frames": list(frames.shape), "segments": {c.name: c.index + 1 for c in plan.classes}}


def _training_manifest(task: Task) -> dict[str, Any]:
    asked, store = task.settings, task.store
    given = {name: getattr(asked, name) for name in ("reviewer", "patient", "split", "licence")}
    with ExitStack() as opened:
        image = store.path
        if store.plan.image_shape is None or asked.input is not None:
            # A row names a file of the user's, not a copy of it.
            opened.enter_context(task.input("the result has no image to train on"))
            image = cast("Path", asked.input)
        kept = {name: value for name, value in given.items() if value is not None}
        row = write_training_row(task.out, store, image=image, **{"reviewer": None, "patient": None, **kept})
    return {"row": row.model_dump(mode="json")}


ADDED_TO = ("training-manifest",)
"""What is written into a file that may be there."""
KINDS: dict[str, tuple[Callable[[Task], dict[str, Any]], tuple[str, ...], frozenset[str]]] = {
    "geojson": (
        _geojson,
        ("yx",),
        frozenset({"tolerance", "min_area", "merge", "frame", "background", "input"}),
    ),
    "ome-tiff": (_ome_tiff, ("yx",), frozenset({"colors"})),
    "nifti": (_nifti, ("zyx",), frozenset({"input"})),
    "dicom-seg": (_dicom_seg, ("yx", "zyx"), frozenset({"input"})),
    "training-manifest": (
        _training_manifest,
        ("yx",),
        frozenset({"input", "reviewer", "patient", "split", "licence"}),
    ),
    "png": (_png, ("yx",), frozenset({"mpp"})),
    "csv": (_csv, ("yx", "zyx"), frozenset({"regions", "structure", "around", "mpp", "min_area"})),
}
"""By the name after --to: what writes it, the masks it is for, and what may be asked of it."""
