"""The files beside a store: where they lie, and the mask as a file for other programs."""

from __future__ import annotations

import errno
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiseg.errors import ObjectStoreError, UsageError, WsisegError
from wsiseg.export.nifti import CONFIDENCE, DESCRIPTION, write_nifti
from wsiseg.files import writing
from wsiseg.objects import ObjectPath
from wsiseg.sources.volume import VolumeSource

if TYPE_CHECKING:
    from wsiseg.prepare import Job, Request
    from wsiseg.store import CaseStore

STALE = (
    "report.json",
    "overlay.png",
    "confidence.png",
    "diagnosis.csv",
    "diagnosis.png",
    "mask.nii.gz",
    "confidence.nii.gz",
)
"""What lies beside a store and belongs to what is in it."""


def beside(request: Request, name: str) -> Path:
    """Where a file of a case lies, beside its store."""
    return request.out / f"{request.case}.{name}"


def report_path(request: Request) -> Path:
    """Where the report of a case lies."""
    return beside(request, "report.json")


def overlay_path(request: Request) -> Path:
    """Where the picture of a case lies."""
    return beside(request, "overlay.png")


def confidence_picture(request: Request) -> Path:
    """Where the picture of the confidence of a case lies."""
    return beside(request, "confidence.png")


def structure_table(request: Request) -> Path:
    """Where the structure numbers of a case lie."""
    return beside(request, "structure.csv")


def check_out(request: Request) -> None:
    """Raises UsageError where the folder of the results cannot be made or written to."""
    try:
        if request.store.exists():
            return  # what is finished can be read again from where nothing may be written
    except OSError as err:
        raise _refusal(request.out, err) from None
    check_folder(request.out)


def check_folder(out: Path) -> None:
    """Raises UsageError where a folder cannot be made or written to."""
    out = out.absolute()
    try:
        place = next(p for p in (out, *out.parents) if p.exists())
    except OSError as err:
        raise _refusal(out, err) from None
    if isinstance(out, ObjectPath):
        return  # whether something may be written there is seen when it is
    if not place.is_dir():
        raise UsageError(_no_folder(out, f"{place} is a file"))
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(_no_folder(out, f"{place} may not be written to"))


def _refusal(out: Path, err: OSError) -> WsisegError:
    """What to tell of a folder that cannot be used; what may pass is no mistake of the command."""
    if isinstance(err, ObjectStoreError) and err.errno not in (errno.EACCES, errno.ENODEV):
        return err
    return UsageError(_no_folder(out, str(err.strerror)))


def _no_folder(out: Path, why: str) -> str:
    return f"--out {out.absolute()} cannot be made: {why}; choose another folder"


def remove_stale(request: Request) -> None:
    """Remove what lies beside a result that is about to be begun anew."""
    for name in STALE:
        path = beside(request, name)
        with writing(path):
            path.unlink(missing_ok=True)


def remove_partial(request: Request) -> None:
    """Remove what a process that was killed left half written beside a store."""
    for name in STALE:
        for path in request.out.glob(f"{glob.escape(beside(request, name).name)}.*.partial"):
            with writing(path):
                path.unlink(missing_ok=True)


def export_nifti(job: Job, store: CaseStore) -> Path | None:
    """The mask of a volume on its file's own grid."""
    return _to_nifti(job, "mask.nii.gz", store.mask(), description=DESCRIPTION)


def confidence_nifti(job: Job, store: CaseStore) -> Path | None:
    """The confidence of a volume on its file's own grid."""
    return _to_nifti(job, "confidence.nii.gz", store.confidence(), description=CONFIDENCE)


def _to_nifti(job: Job, name: str, array: Any, *, description: str) -> Path | None:
    if array is None or not isinstance(job.source, VolumeSource):
        return None
    path = beside(job.request, name)
    write_nifti(path, array, job.source.native, description=description)
    return path
