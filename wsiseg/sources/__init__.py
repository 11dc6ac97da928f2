"""Images of every format, behind one protocol."""

from __future__ import annotations

from pathlib import Path

import openslide

from wsiseg.bounded import in_short
from wsiseg.config import SegmentConfig
from wsiseg.copies import Cache
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.files import shown
from wsiseg.objects import to_path
from wsiseg.sources.base import Source, known_spacing
from wsiseg.sources.omezarr import open_multiscale
from wsiseg.sources.picture import SUFFIXES as PICTURE_SUFFIXES
from wsiseg.sources.picture import open_picture
from wsiseg.sources.slide import open_slide
from wsiseg.sources.tiff import SUFFIXES as TIFF_SUFFIXES
from wsiseg.sources.tiff import open_tiff
from wsiseg.sources.volumes import holds_dicom, open_volume

LONGEST_PATH, LONGEST_NAME = 4096, 255
"""Bytes: of Linux, and of its file systems."""

__all__ = ["Source", "image_files", "open_source"]


def open_source(
    path: str | Path, mpp: float | None = None, *, modalities: tuple[str, ...] | None = None
) -> Source:
    """The finest resolution of an image file; coarser ones are its `levels`.

    `mpp` is the level-0 pixel size of a slide in µm and overrides the file's; `modalities` name the
    channels of a volume that is a folder with a file for each. Raises UnreadableSource for what is
    missing, broken or of no known format, MissingSpacing where the pixel size is unknown.
    """
    path = Cache.of(SegmentConfig()).keep(to_path(path))
    _check_name(path)
    if not path.exists():
        leads = f"{path} is a symbolic link that leads to no file; mend or remove it"
        raise UnreadableSource(leads if path.is_symlink() else f"no such file: {path}")
    volume = open_volume(path, modalities=modalities)
    if volume is not None:
        if mpp is not None:
            raise SourceError(f"{path} is a volume and states its voxel size; --mpp is for slides")
        return volume
    if (source := _dicom_slide(path, mpp)) is not None:
        return source
    if path.is_dir():
        if (path / "Slidedat.ini").is_file():
            raise UnreadableSource(f"{path} is the folder of a MIRAX slide; name the .mrxs file beside it")
        if not any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs")):
            raise UnreadableSource(
                f"{path} is a folder without an OME-Zarr image, a DICOM slide or series, or the modalities "
                "of a case"
            )
        source = open_multiscale(path, mpp=mpp)
        if source.geometry.axes == "yx" and source.num_channels != 3:
            raise SourceError(f"{path} has {source.num_channels} channels; slides have 3")
        return source
    suffix = path.suffix.lower()
    vendor = openslide.OpenSlide.detect_format(str(path))
    # OpenSlide's generic reader takes tiled TIFFs too, but not the pyramids of OME-TIFF.
    if vendor is not None and not (vendor == "generic-tiff" and suffix in TIFF_SUFFIXES):
        return open_slide(path, mpp=mpp)
    if suffix in TIFF_SUFFIXES:
        return open_tiff(path, mpp=mpp)
    if suffix in PICTURE_SUFFIXES:
        return open_picture(path, spacing=known_spacing(path, mpp, None))
    if suffix == ".mrxs" and not (path.with_suffix("") / "Slidedat.ini").is_file():
        raise UnreadableSource(
            f"{path} is one part of a MIRAX slide; its folder {path.stem} with Slidedat.ini is not beside it"
        )
    raise UnreadableSource(
        f"{path} is not an image that can be read: OpenSlide {openslide.__library_version__} does not know "
        "it, and it is no PNG, JPG, TIF, DICOM or OME-Zarr; convert it to OME-TIFF"
    )


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UnreadableSource(f"{shown(path)} has a name that is not UTF-8; rename it") from None
    if len(str(path).encode()) >= LONGEST_PATH or any(len(p.encode()) > LONGEST_NAME for p in path.parts):
        raise UnreadableSource(f"{in_short(path)} is longer than a path can be; shorten it")


def image_files(path: Path) -> tuple[Path, ...]:
    """The files that `path` stands for: those of its DICOM slide, else the path itself.

    Raises SourceError like `open_source` for a DICOM slide that cannot be used.
    """
    if path.is_dir() or not _holds_dicom_slide(path):
        return (path,)
    from wsiseg.sources.dicom_images import slide_files

    return slide_files(path)


def _dicom_slide(path: Path, mpp: float | None) -> Source | None:
    if not _holds_dicom_slide(path):
        return None
    from wsiseg.sources.dicom_slide import open_dicom_slide

    return open_dicom_slide(path, mpp=mpp)


def _holds_dicom_slide(path: Path) -> bool:
    # A file that is both is the TIFF that its name says.
    if path.suffix.lower() in TIFF_SUFFIXES or not holds_dicom(path):
        return False
    from wsiseg.sources.dicom_images import holds_slide

    return holds_slide(path)
