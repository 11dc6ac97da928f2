"""Which reader opens a volume."""

from __future__ import annotations

from pathlib import Path

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.nifti import MODALITIES, find_modalities, is_nifti, open_modalities, open_nifti
from wsiseg.sources.volume import VolumeSource

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_DICOM_MARK_AT, _DICOM_MARK = 128, b"DICM"


def open_volume(
    path: str | Path, *, modalities: tuple[str, ...] | None = None, series: str | int | None = None
) -> VolumeSource | None:
    """The volume at a path, None where that is no volume: a slide, a picture, a folder of cases.

    A folder is a volume if it holds a DICOM series, or the files of `modalities` (without them: of
    all four of BraTS). `series` chooses one of several DICOM series by UID or number. Raises
    SourceError and UnreadableSource like the readers.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path, modalities, series)
        return _open_file(path, series) if path.is_file() else None
    except OSError as err:
        raise UnreadableSource(f"{path} cannot be read: {err}") from None


def _open_file(path: Path, series: str | int | None) -> VolumeSource | None:
    if is_nifti(path):
        return open_nifti(path)
    if path.suffix.lower() in ITK_SUFFIXES:
        from wsiseg.sources.itk import open_itk

        return open_itk(path)
    return _open_dicom(path, series)


def _open_folder(
    path: Path, modalities: tuple[str, ...] | None, series: str | int | None
) -> VolumeSource | None:
    if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return None
    if any(is_nifti(file) for file in path.iterdir()):
        if modalities is not None:
            return open_modalities(path, modalities)
        try:
            find_modalities(path, tuple(MODALITIES))
        except SourceError:
            return None  # many cases in one folder, each a file
        return open_modalities(path)
    return _open_dicom(path, series)


def holds_dicom(path: Path) -> bool:
    """True for a file that begins like DICOM, and for a folder (not the folders in it) with one."""
    files = path.iterdir() if path.is_dir() else [path]
    return any(is_dicom(file) for file in files if file.is_file())


def _open_dicom(path: Path, series: str | int | None) -> VolumeSource | None:
    if not holds_dicom(path):
        return None
    from wsiseg.sources.dicom_series import holds_series, open_series

    return open_series(path, series=series) if holds_series(path) else None


def is_dicom(path: Path) -> bool:
    """True of a file that has the mark of DICOM."""
    with path.open("rb") as file:
        file.seek(_DICOM_MARK_AT)
        return file.read(len(_DICOM_MARK)) == _DICOM_MARK
