"""A reviewed slide as a row of a training manifest: its image, and what was drawn on it as truth."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from wsiseg.errors import MissingSpacing, UsageError
from wsiseg.export.streams import check_name, written
from wsiseg.manifest import CaseRow, read_manifest
from wsiseg.reviews.corrections import Corrections
from wsiseg.sources import open_source
from wsiseg.store import CaseStore

SPLITS = ("train", "validation", "test")
UNSTATED = "not stated"


def write_training_row(
    path: Path,
    store: CaseStore,
    *,
    image: Path,
    reviewer: str | None,
    patient: str | None,
    split: str = "train",
    licence: str = UNSTATED,
) -> CaseRow:
    """Write the row of a reviewed slide into a manifest, new or one that is there; returns the row.

    Truth are the polygons of `reviewer` (None: the only one who drew any); what nobody marked is not
    trained on. Paths in it are relative to its folder, in which `image` and the review must lie. The row of
    the same case is replaced. Raises UsageError, ManifestError, AnnotationError, StoreError.
    """
    check_name(path, (".csv",), what="a manifest")
    if patient is None:
        raise UsageError("name the patient with --patient: splits never divide one")
    if split not in SPLITS:
        raise UsageError(f"--split {split} is not known; it is one of {', '.join(SPLITS)}")
    corrections = Corrections(store)
    layer = corrections.path(chosen(corrections, reviewer, store=store))
    row = CaseRow(
        case=store.plan.case,
        path=inside(image, folder=path.parent, what="the image"),
        patient=patient,
        split=split,
        annotation=inside(layer, folder=path.parent, what="the review"),
        mpp=None if states_spacing(image) else store.plan.spacing[0],
        licence=licence,
    )
    rows = list(read_manifest(path).cases) if path.exists() else []
    others = [one for one in rows if one.case != row.case]
    for one in others:
        if one.patient == row.patient and one.split not in (None, row.split):
            raise UsageError(
                f"--split {split}: patient {patient} stands in split {one.split} with {one.case}"
            )
    _write(path, [*others, row])
    return row


def chosen(corrections: Corrections, reviewer: str | None, *, store: CaseStore) -> str:
    """Initials of the reviewer whose polygons are taken. Raises UsageError, AnnotationError."""
    drew = [initials for initials, layer in corrections.layers().items() if layer.features]
    if reviewer is None and len(drew) == 1:
        return drew[0]
    if not drew:
        raise UsageError(f"nobody has drawn anything on {store.path}; review it with wsiseg view")
    if reviewer not in drew:
        raise UsageError(f"name a reviewer with --reviewer; those who drew on it are {', '.join(drew)}")
    return reviewer


def inside(path: Path, *, folder: Path, what: str) -> str:
    """A path relative to a folder. Raises UsageError where it lies elsewhere."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise UsageError(
            f"{what} {path} is not below {folder}, where the manifest would be; paths of a manifest do not "
            "leave its folder: choose another --out"
        ) from None


def states_spacing(image: Path) -> bool:
    """True where the file says how large its pixels are. Raises SourceError."""
    try:
        open_source(image)
    except MissingSpacing:
        return False
    return True


def _write(path: Path, rows: list[CaseRow]) -> None:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(CaseRow.model_fields))
    table.writeheader()
    table.writerows(row.model_dump() for row in rows)
    with written(path) as stream:
        stream.write(text.getvalue().encode())
