"""Headers of the DICOM images that a mask was made from, for files that refer to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import disable_value_validation

from wsiseg.bounded import in_short
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.dicom_images import holds_slide, slide_images
from wsiseg.sources.dicom_series import BAD_FILE, ordered_slices
from wsiseg.sources.volumes import holds_dicom


def reference_headers(path: Path) -> list[Any]:
    """The data set of a slide's finest level, or those of the slices of a series in their order.

    They come without pixels. Raises SourceError for what is neither, and for a level or series whose images
    do not lie in files as a segmentation refers to them; UnreadableSource.
    """
    if not holds_dicom(path):
        raise SourceError(f"{path} is neither a DICOM slide nor a DICOM series; --to dicom-seg is for these")
    if holds_slide(path):
        images = slide_images(path)
        finest = [i.path for i in images if i.shape == images[0].shape]
        if len(finest) > 1:
            raise SourceError(
                f"the finest level of {path} lies in {len(finest)} files; a segmentation refers to one: use "
                "--to ome-tiff"
            )
        return [_header(finest[0])]
    slices, _ = ordered_slices(path)
    if any(s.frame >= 0 for s in slices):
        raise SourceError(
            f"{path} has many slices in one file; a segmentation is written for series with a file a slice: "
            "use --to nifti"
        )
    return [_header(s.path) for s in slices]


def _header(path: Path) -> Any:
    try:
        with disable_value_validation():
            return pydicom.dcmread(path, stop_before_pixels=True)
    except BAD_FILE as err:
        raise UnreadableSource(f"{path} cannot be read as DICOM: {in_short(err)}") from None
