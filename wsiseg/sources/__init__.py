"""Images of every format, behind one protocol."""

from __future__ import annotations

from pathlib import Path

import openslide

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.base import Source, known_spacing
from wsiseg.sources.omezarr import open_multiscale
from wsiseg.sources.picture import SUFFIXES as PICTURE_SUFFIXES
from wsiseg.sources.picture import open_picture
from wsiseg.sources.slide import open_slide
from wsiseg.sources.tiff import SUFFIXES as TIFF_SUFFIXES
from wsiseg.sources.tiff import open_tiff
from wsiseg.sources.volumes import open_volume

__all__ = ["Source", "open_source"]


def open_source(
    path: str | Path, mpp: float | None = None, *, modalities: tuple[str, ...] | None = None
) -> Source:
    """The finest resolution of an image file; coarser ones are its `levels`.

    `mpp` is the level-0 pixel size of a slide in µm and overrides the file's; `modalities` name the
    channels of a volume that is a folder with a file for each. Raises UnreadableSource for what is
    missing, broken or of no known format, MissingSpacing where the pixel size is unknown.
    """
    path = Path(path)
    if not path.exists():
        raise UnreadableSource(f"no such file: {path}")
    volume = open_volume(path, modalities=modalities)
    if volume is not None:
        if mpp is not None:
            raise SourceError(f"{path} is a volume and states its voxel size; --mpp is for slides")
        return volume
    if path.is_dir():
        if not any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs")):
            raise UnreadableSource(
                f"{path} is a folder without an OME-Zarr image, a DICOM series or the modalities of a case"
            )
        source: Source = open_multiscale(path, mpp=mpp)
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
    raise UnreadableSource(
        f"{path} is not an image that can be read: OpenSlide does not know it, and it is no "
        f"{', '.join(s[1:].upper() for s in (*PICTURE_SUFFIXES[:2], TIFF_SUFFIXES[0]))} or OME-Zarr"
    )
